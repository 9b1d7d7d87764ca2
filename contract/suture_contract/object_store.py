"""Why an S3-compatible server did not do what it was asked for, in words, from what the library `obstore` says of it.

The library's own text is long, and may hold what a request was signed with: none of it is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ADDRESS = "check the address (url, endpoint), and that the server runs there and can be reached from here"
_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and what that key may do in the bucket"
_TRUST = "SSL_CERT_FILE names the authorities that may have signed it; the address must be one that it is made out to"
_LATER = "look at the server's log; it may be overloaded or out of space"

#: What the library's text holds, what it means, and what to do. The first that is there counts.
_CAUSES = (
    # Where nobody names credentials, the library asks the machine that an Amazon server would run on.
    (r"169\.254\.|fd00:ec2", "there are no credentials", _CREDENTIALS),
    (r"dns error", "there is no host of that name", _ADDRESS),
    (r"ConnectionRefused|Connection refused", "nothing listens there", _ADDRESS),
    (r"InvalidCertificate|certificate", "its certificate is not trusted", _TRUST),
    (r"InvalidMessage|InvalidContentType", "what listens there speaks no TLS", _ADDRESS),
    (r"kind: Timeout|TimedOut", "it does not answer in time", _ADDRESS),
    (r"kind: Connect", "it cannot be reached", _ADDRESS),
    (r"RequestTimeTooSkewed", "its clock differs from ours", "synchronise this clock (NTP)"),
    (r"NoSuchBucket", "it has no such bucket", "make the bucket, or correct its name in url"),
    (r"InvalidAccessKeyId", "it does not know the access key", _CREDENTIALS),
    (r"SignatureDoesNotMatch", "the secret is not that of the access key", _CREDENTIALS),
    (r"ExpiredToken|InvalidToken", "the credentials have ended", _CREDENTIALS),
    (r"AccessDenied|PermissionDenied|Unauthenticated|status: 40[13]", "it refuses what was asked for", _CREDENTIALS),
    (r"BareRedirect|PermanentRedirect", "the bucket is in another region", "correct AWS_REGION, or the endpoint"),
    (r"NoSuchKey", "the object is not there", _LATER),
    (r"MissingEtag|status: (?:200|404|405)", "what answers there is no S3 server, or has no such bucket", _ADDRESS),
)
_STATUS = re.compile(r"status: (\d{3})")


@dataclass(frozen=True)
class Cause:
    """What is wrong with a server, and what to do about it."""

    words: str
    hint: str


def cause_of(error: Exception) -> Cause:
    """Return why a call of `obstore` failed."""
    text = str(error)
    for pattern, words, hint in _CAUSES:
        if re.search(pattern, text):
            return Cause(words, hint)
    status = _STATUS.search(text)
    if status is not None:
        return Cause(f"it answers with the status {status[1]}", _LATER)
    return Cause(f"it does not answer as it should ({type(error).__name__})", _ADDRESS)
