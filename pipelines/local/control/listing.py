"""What all List operations share: filters, order, pages."""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from pipelines.local.errors import invalid
from pipelines.local.store import Document

_PAGE = 100  # when the request does not say
_SORT_FIELDS = {"Name": "", "CreationTime": "CreationTime", "Status": "Status", "LastModifiedTime": "LastModifiedTime"}


def page(
    request: dict[str, Any],
    documents: list[Document],
    key: str,
    name: str,
    status: str = "",
    order: Callable[[Document], Any] | None = None,
) -> dict[str, Any]:
    """One page of documents.

    Args:
        request: the API's; reads MaxResults, NextToken, SortBy, SortOrder, NameContains, StatusEquals and the
            CreationTime…/LastModifiedTime… bounds, whichever it holds.
        documents: all there are, oldest first.
        key: the list's name in the answer.
        name: the field that names a document.
        status: the field StatusEquals looks at.
        order: sorts the documents instead of what SortBy says.
    """
    kept = [document for document in documents if _matches(request, document, name, status)]
    by = _SORT_FIELDS.get(request.get("SortBy", "CreationTime"), "CreationTime")
    field = name if by == "" else status if by == "Status" else by
    kept.sort(key=order or (lambda document: document.get(field, "")))
    if request.get("SortOrder", "Descending") == "Descending":
        kept.reverse()
    first = 0
    if token := request.get("NextToken"):
        after = _decode(token)
        names = [document[name] for document in kept]
        if after not in names:
            raise invalid("The NextToken is not valid any more")
        first = names.index(after) + 1
    most = request.get("MaxResults", _PAGE)
    answer: dict[str, Any] = {key: kept[first : first + most]}
    if first + most < len(kept):
        answer["NextToken"] = base64.urlsafe_b64encode(kept[first + most - 1][name].encode()).decode()
    return answer


def _decode(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, ValueError):
        raise invalid(f"The NextToken is not valid: {token[:80]!r}") from None


def _matches(request: dict[str, Any], document: Document, name: str, status: str) -> bool:
    if request.get("NameContains", "").lower() not in document[name].lower():
        return False
    if status and request.get("StatusEquals") not in (None, document[status]):
        return False
    for field, prefix in (("CreationTime", "Creation"), ("LastModifiedTime", "LastModified")):
        after = request.get(f"{prefix}TimeAfter", request.get("CreatedAfter") if field == "CreationTime" else None)
        before = request.get(f"{prefix}TimeBefore", request.get("CreatedBefore") if field == "CreationTime" else None)
        if (after is not None and document[field] <= after) or (before is not None and document[field] >= before):
            return False
    return True
