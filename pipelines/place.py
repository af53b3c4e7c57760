"""Where a command goes: to SageMaker on AWS, or to SageMaker on this machine. Only the clients differ."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.contract import ROOT
from pipelines.errors import UserError
from pipelines.settings import LOCAL_ACCOUNT, Settings

STATE_VARIABLE = "SAGEMAKER_LOCAL_DIR"


@dataclass(frozen=True)
class Place:
    """Clients of one account, and the settings with its account and region filled in."""

    settings: Settings
    url: str | None
    """The local service's address; None on AWS."""
    session: Any
    """boto3's."""

    @property
    def local(self) -> bool:
        """Whether it is this machine."""
        return self.url is not None

    def client(self, service: str) -> Any:
        """A boto3 client: `sagemaker`, `sagemaker-runtime`, `s3` or `logs`."""
        from botocore.config import Config

        if self.url is None:
            return self.session.client(service, config=Config(retries={"mode": "standard", "max_attempts": 6}))
        # A proxy of the user's has no business with 127.0.0.1.
        config = Config(proxies={}, s3={"addressing_style": "path"}, max_pool_connections=32)
        return self.session.client(service, endpoint_url=self.url, config=config)

    def ensure_bucket(self) -> None:
        """Make the bucket if it is SageMaker's own and not there yet: private, encrypted with S3's keys.

        Raises:
            UserError: it is somebody else's, or a bucket that was asked for does not exist.
        """
        from botocore.exceptions import ClientError

        s3, bucket = self.client("s3"), self.settings.bucket_name
        owner = {} if self.local else {"ExpectedBucketOwner": self.settings.account}
        try:
            s3.head_bucket(Bucket=bucket, **owner)
            return
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code not in ("404", "NoSuchBucket"):
                raise UserError(
                    f"bucket {bucket} cannot be used by account {self.settings.account} ({code}): give another with "
                    "--set bucket=NAME, or ask for access"
                ) from None
        if self.settings.bucket:
            raise UserError(f"bucket {bucket} does not exist: create it, or leave `bucket` empty for SageMaker's own")
        region = self.settings.region
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        s3.create_bucket(Bucket=bucket, **place)
        if self.local:
            return
        blocked = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocked, True))


def state_dir() -> Path:
    """Where the local service keeps everything."""
    return Path(os.environ.get(STATE_VARIABLE) or ROOT / ".sagemaker").expanduser().resolve()


def local(settings: Settings) -> Place:
    """SageMaker on this machine, started if it does not run.

    Raises:
        UserError: it does not start.
    """
    import boto3

    from pipelines.local import service

    try:
        url = service.ensure_running(state_dir())
    except (service.ServiceFailed, OSError) as error:
        raise UserError(f"SageMaker on this machine does not start: {error}") from None
    # Nobody's credentials, so that real ones cannot go astray.
    session = boto3.Session("local", "local", region_name=settings.region)
    return Place(settings.model_copy(update={"account": LOCAL_ACCOUNT}), url, session)


def aws(settings: Settings) -> Place:
    """AWS, with the credentials in use; the region is the settings' own if they name one, else the environment's.

    Raises:
        UserError: no credentials, or ones that are refused.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        session = boto3.Session()
        region = settings.region if "region" in settings.model_fields_set else session.region_name or settings.region
        session = boto3.Session(region_name=region)
        account = session.client("sts").get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise UserError(
            f"AWS cannot be reached with your credentials ({error}); run `aws configure` or set AWS_PROFILE, or add "
            "--local to stay on this machine"
        ) from None
    if "account" in settings.model_fields_set and settings.account != account:
        raise UserError(f"account = {settings.account}, but the credentials belong to account {account}")
    return Place(settings.model_copy(update={"account": account, "region": region}), None, session)
