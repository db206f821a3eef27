import pytest

from cplane.cli.masking import masked


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p%40ss@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://u@/d?host=/run/x&port=5432", "postgresql://u@/d?host=/run/x&port=5432"),
        ("postgresql://h/d?user=u&password=p&sslmode=require", "postgresql://h/d?user=u&password=***&sslmode=require"),
        ("redis://:p@h:6379/0", "redis://:***@h:6379/0"),
        ("unix:///run/redis.sock?db=0&password=p", "unix:///run/redis.sock?db=0&password=***"),
        ("file:///var/lib/cplane", "file:///var/lib/cplane"),
        ("s3://bucket/prefix?aws_secret_access_key=k", "s3://bucket/prefix?aws_secret_access_key=***"),
    ],
)
def test_secrets_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown
