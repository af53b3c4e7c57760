"""The endpoint's four handlers, on the model the demo trains."""

import base64
import csv
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import inference
import photos
from inference import BadRequest

MakePhoto = Callable[..., bytes]
SPEC = photos.Preprocessing(32, 32)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> inference.Model:
    return inference.model_fn(str(model_dir))


@pytest.fixture(scope="module")
def digits_of_test(digits_pipeline: Any) -> list[tuple[str, bytes]]:
    """Class and bytes of every photo of the test side."""
    found = []
    for path in sorted((digits_pipeline.root / "test").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found.append((member.name.split("/")[0], file.read()))
    return found


def batch_of(*images: bytes) -> str:
    return json.dumps({"images": [base64.b64encode(image).decode() for image in images]})


def ask(model: inference.Model, body: bytes | str, kind: str, accept: str | None = None) -> tuple[str, str]:
    """One request through all handlers."""
    return inference.output_fn(inference.predict_fn(inference.input_fn(body, kind), model), accept)


def model_that_gives(*logits: float) -> inference.Model:
    """A network without an opinion on the photo."""
    classes = [f"class {number}" for number in range(len(logits))]
    return inference.Model(classes, SPEC, lambda batch: np.tile(np.float32(logits), (len(batch), 1)), "torch")


class TestEngines:
    def test_onnx_runtime_and_pytorch_give_the_same_probabilities(
        self, model: inference.Model, model_dir: Path, digits_of_test: list[tuple[str, bytes]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
        other = inference.model_fn(str(model_dir))
        assert (model.engine, other.engine) == ("onnxruntime", "torch")
        assert other.classes == model.classes
        data = [photos.decode(image) for _, image in digits_of_test]
        ours, theirs = (np.exp(inference.predict_fn(data, each).log_probabilities) for each in (model, other))
        assert ours.shape == (len(data), 10)
        assert np.abs(ours - theirs).max() <= 1e-4
        assert np.ptp(ours, axis=0).min() > 0.5  # they are not all the same answer
        np.testing.assert_allclose(ours.sum(1), 1, atol=1e-9)

    def test_most_digits_are_read_right(
        self, model: inference.Model, digits_of_test: list[tuple[str, bytes]]
    ) -> None:  # fmt: skip
        data = [photos.decode(image) for _, image in digits_of_test]
        best = inference.predict_fn(data, model).log_probabilities.argmax(1)
        right = [model.classes[index] == label for index, (label, _) in zip(best, digits_of_test, strict=True)]
        assert np.mean(right) > 0.9

    def test_a_batch_is_answered_as_its_photos_one_by_one(
        self, model: inference.Model, digits_of_test: list[tuple[str, bytes]]
    ) -> None:
        images = [image for _, image in digits_of_test[::7]]
        assert len(images) > inference.BATCH * 2
        text, kind = ask(model, batch_of(*images), "application/json")
        assert kind == "application/json"
        together = json.loads(text)["predictions"]
        alone = [json.loads(ask(model, image, "image/png")[0])["predictions"] for image in images]
        assert [len(answers) for answers in alone] == [1] * len(images)
        for many, (single,) in zip(together, alone, strict=True):
            assert many["label"] == single["label"]
            for name, probability in single["probabilities"].items():
                if probability > 1e-3:  # of a tie between two that are next to nothing, either may be named
                    assert many["probabilities"][name] == pytest.approx(probability, abs=1e-4)


class TestInput:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        "content_type",
        ["image/jpeg", "image/jpg", "image/png", "image/webp", "application/x-image", "IMAGE/PNG; q=1", " image/png "],
    )
    def test_a_photo_is_known_by_its_bytes(self, make_photo: MakePhoto, kind: str, content_type: str) -> None:
        (image,) = inference.input_fn(make_photo(kind=kind), content_type)
        assert (image.mode, image.size) == ("RGB", (40, 30))

    def test_bytes_in_every_wrapping(self, make_photo: MakePhoto) -> None:
        data = make_photo(kind="PNG")
        bodies: list[bytes | bytearray | str] = [data, bytearray(data), data.decode("latin-1")]
        decoded = [inference.input_fn(body, "image/png")[0] for body in bodies]
        assert len({image.tobytes() for image in decoded}) == 1

    def test_a_batch_keeps_its_order(self, make_photo: MakePhoto) -> None:
        images = [make_photo(seed, (20 + seed, 30), "PNG") for seed in range(5)]
        for body in (batch_of(*images), batch_of(*images).encode()):
            decoded = inference.input_fn(body, "application/json; charset=utf-8")
            assert [image.width for image in decoded] == [20, 21, 22, 23, 24]

    @pytest.mark.parametrize("content_type", [None, "", "text/plain", "image/gif", "multipart/form-data"])
    def test_another_content_type(self, make_photo: MakePhoto, content_type: str | None) -> None:
        refused(415, "expected one of image/jpeg", make_photo(), content_type)

    @pytest.mark.parametrize("content_type", ["image/jpeg", "application/json"])
    def test_an_empty_body(self, content_type: str) -> None:
        for body in (b"", ""):
            refused(400, "the request is empty", body, content_type)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_a_photo_cut_short(self, make_photo: MakePhoto, kind: str) -> None:
        data = make_photo(kind=kind)
        for length in (3, len(data) // 3, len(data) * 2 // 3):
            refused(400, "photo 1 of 1: ", data[:length], "image/jpeg")

    def test_no_photo(self) -> None:
        refused(400, "not a JPEG, PNG or WebP image", b"GIF89a" + bytes(100), "image/png")

    def test_the_number_of_the_bad_one(self, make_photo: MakePhoto) -> None:
        refused(400, "photo 2 of 3: ", batch_of(make_photo(), b"text", make_photo()), "application/json")

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("{", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("[]", "JSON of another form"),
            ("{}", "JSON of another form"),
            ('{"images": []}', "JSON of another form"),
            ('{"images": "aaaa"}', "JSON of another form"),
            ('{"images": [1]}', "JSON of another form"),
            ('{"images": [null]}', "JSON of another form"),
            ('{"images": ["a"]}', "not base64"),
            ('{"images": ["????"]}', "not base64"),
            ('{"images": ["é"]}', "not base64"),
            ('{"images": ["\\ud800"]}', "not base64"),
            ('{"images": [""]}', "photo 1 of 1"),
        ],
    )
    def test_a_batch_of_another_form(self, body: bytes | str, reason: str) -> None:
        refused(400, reason, body, "application/json")

    def test_too_many_photos(self) -> None:
        pixel = png(1, 1)
        assert len(inference.input_fn(batch_of(*[pixel] * inference.MAX_PHOTOS), "application/json")) == 64
        refused(413, "65 photos in one request", batch_of(*[pixel] * 65), "application/json")

    def test_too_many_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bomb = png(20_000, 20_000)  # 400 MB of pixels in less than one of PNG
        assert len(bomb) < 1_000_000
        refused(413, "20000x20000 pixels", bomb, "image/png")
        monkeypatch.setattr(inference, "MAX_PIXELS", 300)
        assert len(inference.input_fn(batch_of(*[png(10, 10)] * 3), "application/json")) == 3
        refused(413, "photo 4 of 4", batch_of(*[png(10, 10)] * 4), "application/json")


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def refused(status: int, reason: str, body: bytes | str, content_type: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        inference.input_fn(body, content_type)
    assert caught.value.status == status
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500


class TestPredict:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_network_that_gives_no_numbers(self, value: float) -> None:
        with pytest.raises(RuntimeError, match="not finite"):
            inference.predict_fn([Image.new("RGB", (8, 8))], model_that_gives(0, value, 1))

    def test_extreme_logits_keep_their_order_and_a_finite_loss(self) -> None:
        prediction = inference.predict_fn([Image.new("RGB", (8, 8))], model_that_gives(-3e4, 3e4, 0))
        assert prediction.log_probabilities.tolist() == [[-6e4, 0, -3e4]]

    def test_probabilities_are_the_softmax(self) -> None:
        prediction = inference.predict_fn([Image.new("RGB", (8, 8))] * 11, model_that_gives(0, np.log(2), np.log(5)))
        np.testing.assert_allclose(np.exp(prediction.log_probabilities), [[1 / 8, 2 / 8, 5 / 8]] * 11, rtol=1e-6)


class TestOutput:
    @pytest.fixture
    def prediction(self) -> inference.Prediction:
        shares = np.array([[0.1, 0.05, 0.4, 0.2, 0.03, 0.22], [0.5, 0.3, 0.1, 0.06, 0.03, 0.01]])
        return inference.Prediction(['a "b", c', "é\n", "cat", "dog", "emu", "fox"], np.log(shares))

    def test_json(self, prediction: inference.Prediction) -> None:
        text, kind = inference.output_fn(prediction, "application/json")
        assert kind == "application/json"
        first, second = json.loads(text)["predictions"]
        assert (first["label"], second["label"]) == ("cat", 'a "b", c')
        assert list(first["probabilities"]) == ["cat", "fox", "dog", 'a "b", c', "é\n"]
        assert list(second["probabilities"].values()) == pytest.approx([0.5, 0.3, 0.1, 0.06, 0.03])

    def test_csv(self, prediction: inference.Prediction) -> None:
        text, kind = inference.output_fn(prediction, "text/csv")
        assert kind == "text/csv"
        first, second = csv.reader(io.StringIO(text, newline=""))
        assert first[::2] == ["cat", "fox", "dog", 'a "b", c', "é\n"]
        assert [float(value) for value in first[1::2]] == pytest.approx([0.4, 0.22, 0.2, 0.1, 0.05])
        assert second[0] == 'a "b", c'

    def test_no_more_labels_than_there_are(self) -> None:
        text, _ = inference.output_fn(inference.Prediction(["a", "b"], np.log([[0.25, 0.75]])), None)
        assert json.loads(text) == {"predictions": [{"label": "b", "probabilities": {"b": 0.75, "a": 0.25}}]}

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            (None, "application/json"),
            ("", "application/json"),
            ("*/*", "application/json"),
            ("application/*", "application/json"),
            ("text/csv", "text/csv"),
            ("TEXT/CSV", "text/csv"),
            ("text/*", "text/csv"),
            ("text/html, text/csv", "text/csv"),
            ("text/csv;q=0.5, application/json", "application/json"),
            ("text/csv; q=0.9, */*; q=0.1", "text/csv"),
            ("application/json;q=0, text/csv;q=0.1", "text/csv"),
            ("application/json;q=0, */*", "text/csv"),
            ("image/png, */*;q=0.2", "application/json"),
            ("text/csv;q=x, application/json;q=0.1", "application/json"),
        ],
    )
    def test_the_better_liked_form(self, prediction: inference.Prediction, accept: str | None, kind: str) -> None:
        assert inference.output_fn(prediction, accept)[1] == kind

    @pytest.mark.parametrize(
        "accept", ["image/png", "text/html", "application/json;q=0", "*/*;q=0", ",", "text/csv;q=nan"]
    )
    def test_no_form_that_is_liked(self, prediction: inference.Prediction, accept: str) -> None:
        with pytest.raises(BadRequest, match="answers are application/json or text/csv") as caught:
            inference.output_fn(prediction, accept)
        assert caught.value.status == 406

    @given(st.text("aplictonjsxv/*;q=., 01", max_size=40))
    def test_any_accept_is_answered_or_refused(self, accept: str) -> None:
        try:
            _, kind = inference.output_fn(inference.Prediction(["a", "b"], np.log([[0.25, 0.75]])), accept)
        except BadRequest as error:
            assert error.status == 406
        else:
            assert kind in ("application/json", "text/csv")


@pytest.fixture(scope="class")
def small_limit() -> Iterator[None]:
    """A mutated header may announce any size; a hundred megapixels each time would take all day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "MAX_PIXELS", 200_000)
        yield


@pytest.mark.usefixtures("small_limit")
class TestFuzz:
    """Whatever the body, there is an answer or a BadRequest."""

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_damaged_photos(self, model: inference.Model, make_photo: MakePhoto, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
        options = {"progressive": True} if data.draw(st.booleans()) and kind == "JPEG" else {}
        body = bytearray(make_photo(kind=kind, size=(16, 12), **options))
        places = st.integers(0, len(body) - 1) | st.integers(0, 60)  # the headers deserve more than their share
        for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
            body[place] = value
        start = data.draw(st.integers(0, len(body)))
        body[start:start] = data.draw(st.binary(max_size=8))
        del body[data.draw(st.integers(1, len(body)) | st.just(len(body))) :]
        self.answers_or_refuses(model, bytes(body), "application/x-image")

    @settings(max_examples=200, deadline=None)
    @given(
        st.binary(max_size=60)
        | st.recursive(
            st.none() | st.integers() | st.text(max_size=9),
            lambda inner: st.lists(inner) | st.fixed_dictionaries({"images": inner}),
            max_leaves=5,
        ).map(json.dumps)
        | st.lists(st.binary(max_size=20).map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=9)).map(
            lambda images: json.dumps({"images": images})
        )
    )
    def test_any_json(self, model: inference.Model, body: bytes | str) -> None:
        self.answers_or_refuses(model, body, "application/json")

    def answers_or_refuses(self, model: inference.Model, body: bytes | str, kind: str) -> None:
        try:
            text, _ = ask(model, body, kind)
        except BadRequest as error:
            assert error.status in (400, 413)
        else:
            assert json.loads(text)["predictions"][0]["label"] in model.classes
