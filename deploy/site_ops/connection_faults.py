"""What usually keeps a site from its server, told from what was met on the way."""

import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import httpx

from ...common.durations import duration
from ...common.errors import StudyError
from ..enrolment.certificates import certificate_in_words

_WHY: Final = "without this way the site's node brings no message to the study, and none back"
_WHY_TLS: Final = "a node speaks to nobody else than who can show a certificate of the study's ca.crt"
_PATIENCE_S: Final = 10.0
# Codes of OpenSSL's verification (X509_V_ERR_…).
_NOT_YET, _EXPIRED, _OTHER_HOST, _OTHER_ADDRESS = 9, 10, 62, 64


def connection_fault(error: httpx.HTTPError, *, address: str, proxy: str | None, shown: str) -> StudyError:
    """Why ``address`` was not reached, from the exception and those that caused it; ``shown`` is the proxy's place."""
    met = list(_chain(error))
    for cause in met:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(cause, address, proxy)
    at = f"the proxy {shown}" if proxy else address
    if any(isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError) for cause in met):
        what, fix = "answers, and not in TLS", "check host and port: is it the gate's own port, and not plain HTTP?"
    elif any(isinstance(cause, socket.gaierror) for cause in met):
        what, fix = "has a name that cannot be looked up", "check https_proxy, and the machine's DNS"
    elif any(isinstance(cause, ConnectionRefusedError) for cause in met):
        what = "refuses the connection"
        fix = "check https_proxy" if proxy else "ask whether `grandrounds server start` runs, and on which port"
    elif isinstance(error, httpx.TimeoutException):
        what, fix = "does not answer", "ask for the firewall to let this machine out to it, or for a proxy to be set"
    else:
        what = f"breaks the connection off ({type(met[-1]).__name__})"
        fix = "ask whether a firewall or a proxy on the way cuts TLS connections to that port, and have it let through"
    return StudyError(f"{at} {what}", why=_WHY, fix=fix)


def proxy_fault(shown: str, said: str) -> StudyError:
    """Why the proxy at ``shown`` opened no tunnel; ``said`` begins with its HTTP status."""
    status = said.partition(" ")[0]
    if status == "407":
        fix = "put a name and password that it takes into https_proxy (http://NAME:PASSWORD@HOST:PORT); where it takes "
        fix += "none so (NTLM, Kerberos), ask for this one address to be let through without"
    elif status == "403":
        fix = "ask the network's administrators to let this machine CONNECT to that host and port"
    elif status.isdecimal() and status.startswith("5"):
        fix = "ask whether the proxy can reach that host and port, and whether `grandrounds server start` runs there"
    else:
        fix = "check that https_proxy names a proxy that takes CONNECT"
    met = f"HTTP {status}" if status.isdecimal() else "no answer that a proxy gives"
    return StudyError(f"the proxy {shown} opens no way to the server ({met})", why=_WHY, fix=fix)


def unusable_proxy() -> StudyError:
    """Why a proxy in the environment cannot be used at all."""
    return StudyError(
        "https_proxy (or all_proxy) names no proxy that a node can use",
        why=_WHY,
        fix="give one that takes HTTP's CONNECT, as http://HOST:PORT; SOCKS is not supported",
    )


def clock_fault(ahead: timedelta) -> StudyError:
    """A clock that is too far before the server's, or (negative) behind it."""
    seconds = ahead.total_seconds()
    return StudyError(
        f"this machine's clock is {duration(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} the server's",
        why="a node signs the time with each call, and the server takes no call that is 5 s early or 305 s late",
        fix="set the clock by NTP, here or at the server, whichever is wrong",
    )


def gate_fault(status: int) -> StudyError:
    """An answer with an HTTP ``status`` that no gate gives to an enrolled node."""
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        what, fix = (
            "the server's gate is there, and its SuperLink is not",
            "wait, or ask for `grandrounds server start`",
        )
    elif status in (httpx.codes.BAD_GATEWAY, httpx.codes.GATEWAY_TIMEOUT):
        what = "a reverse proxy answers, and does not reach the gate behind it"
        fix = "ask the server's operator whether `grandrounds server start` runs, and where the proxy looks for it"
    elif status == httpx.codes.UNAUTHORIZED:
        what = "the server takes this node's signature for none"
        fix = "compare both clocks; if they agree, node.key is damaged: put it back, or enroll a new one"
    else:
        what = "something else than the server's gate answers there"
        fix = "ask the server's operator whether a reverse proxy passes on POST /v1/fleet/… unchanged"
    return StudyError(f"{what} (HTTP {status})", why=_WHY, fix=fix)


def _untrusted(error: ssl.SSLCertVerificationError, address: str, proxy: str | None) -> StudyError:
    code = error.verify_code
    if code in (_NOT_YET, _EXPIRED):
        what = "is out of its time" if code == _EXPIRED else "is not yet in force"
        fix = "check this machine's date; if it is right, the server's operator renews: `grandrounds server init`"
    elif code in (_OTHER_HOST, _OTHER_ADDRESS):
        what = "is another host's"
        fix = "check that the name leads to the server, and ask its operator for a certificate with that name"
    else:
        what = "is of another authority than the study's"
        fix = "if a proxy or firewall opens TLS to look inside, have this address exempted, since nothing but the "
        fix += "study's ca.crt is trusted (SSL_CERT_FILE is of no use); if the server has a new authority, join with "
        fix += "its new study.zip"
    found = f"; what was shown is {_shown_certificate(address, proxy)}"
    return StudyError(f"the certificate that {address} shows {what}{found}", why=_WHY_TLS, fix=fix)


def _shown_certificate(address: str, proxy: str | None) -> str:
    """What is shown there, in words: nothing is sent to whoever shows it but a request for a page."""
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    untrusting.check_hostname, untrusting.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            httpx.Client(proxy=proxy, trust_env=False, verify=untrusting, timeout=_PATIENCE_S) as client,
            client.stream("GET", f"https://{address}/") as response,
        ):
            shown = response.extensions["network_stream"].get_extra_info("ssl_object")
            return certificate_in_words(shown.getpeercert(True))
    except httpx.HTTPError as error:
        return f"not to be had ({type(error).__name__})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
