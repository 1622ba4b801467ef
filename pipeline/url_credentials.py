"""Detection and masking of credentials in URLs: a password before the host, or a signature or token in the query.

Input URLs are printed and saved in tables, reports and logs, so URLs that contain credentials are rejected. In text
from other sources that may contain such URLs, such as error messages of libraries, the credentials are masked.
"""

import re

MASK = "***"

# These patterns run in linear time, because the text can be megabytes of a hostile list.
# Before the host, a web address can have a token without a colon; abfs://container@account contains no secret.
_BEFORE_HOST = re.compile(r"(?i)(\bhttps?://|[a-z][a-z0-9+.-]{0,30}://(?=[^/?#\s@:]*:))[^/?#\s@]*@")
_WEB_ADDRESS = re.compile(r"(?i)\bhttps?://[^\s'\"<>]+")
# For example X-Amz-Signature, X-Amz-Security-Token and X-Goog-Credential of presigned URLs, or Azure's sig.
# Only applied to http(s) URLs: in other schemes, an object key or file name may legitimately contain this text.
_PARAMETER = re.compile(
    r"(?i)([?&;](?:sig|[^=&;#?]{0,50}(?:signature|credential|token|secret|password|api[_-]?key|access_?key)"
    r"[^=&;#?]{0,50})=)[^&;#]+"
)


def has_credentials(uri: str) -> bool:
    """Return True if a URI contains credentials. Other URLs inside its object key or path do not count."""
    return masked(uri) != uri if _WEB_ADDRESS.match(uri) else bool(_BEFORE_HOST.match(uri))


def credentials_refusal(uri: str) -> str | None:
    """Return the reason for rejecting a URI, without the URI itself; None if it contains no credentials."""
    if not has_credentials(uri):
        return None
    return "contains credentials; remove them from the URL and pass them in the environment (docs/storage.md)"


def masked(text: str) -> str:
    """Return the text with the credentials in its URLs replaced by ***."""
    text = _BEFORE_HOST.sub(rf"\1{MASK}@", text)
    return _WEB_ADDRESS.sub(lambda address: _PARAMETER.sub(rf"\1{MASK}", address[0]), text)
