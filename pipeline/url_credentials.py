"""Credentials that stand in a URL: a password before the host, or a signature or token among the parameters.

A URL that is an input is printed, and saved in tables, reports and logs, so one with credentials is refused; where a
text from elsewhere may hold one, as the errors of libraries do, they are masked.
"""

import re

MASK = "***"

# All of these take time in proportion to the text, which may be megabytes of a hostile list.
# Web addresses may hold a token alone before the host; abfs://container@account holds no secret.
_BEFORE_HOST = re.compile(r"(?i)(\bhttps?://|[a-z][a-z0-9+.-]{0,30}://(?=[^/?#\s@:]*:))[^/?#\s@]*@")
_WEB_ADDRESS = re.compile(r"(?i)\bhttps?://[^\s'\"<>]+")
# X-Amz-Signature, X-Amz-Security-Token and X-Goog-Credential of links signed for a while, sig of Azure's, and the like.
# Not in addresses of other schemes: a key or a file's name may have all of these characters.
_PARAMETER = re.compile(
    r"(?i)([?&;](?:sig|[^=&;#?]{0,50}(?:signature|credential|token|secret|password|api[_-]?key|access_?key)"
    r"[^=&;#?]{0,50})=)[^&;#]+"
)


def has_credentials(uri: str) -> bool:
    """Tell whether a URI holds credentials; a key or path may hold the text of any other URL."""
    return masked(uri) != uri if _WEB_ADDRESS.match(uri) else bool(_BEFORE_HOST.match(uri))


def credentials_refusal(uri: str) -> str | None:
    """Return why a URI may not be used, without its name; None if it holds no credentials."""
    if not has_credentials(uri):
        return None
    return "holds credentials; give the address without them, and credentials through the environment (docs/storage.md)"


def masked(text: str) -> str:
    """Return the text with *** in place of the credentials in its URLs."""
    text = _BEFORE_HOST.sub(rf"\1{MASK}@", text)
    return _WEB_ADDRESS.sub(lambda address: _PARAMETER.sub(rf"\1{MASK}", address[0]), text)
