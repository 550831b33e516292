//! What went wrong with an attempt: its kind, found among all causes of an error and not in the outermost message, what
//! to tell the user, and whether it makes sense to try again.

use std::error::Error;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind};
use std::iter::successors;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::guard::Denied;
use crate::output::record::{Failure, Kind};

/// Why an attempt failed, and what to do about it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) failure: Failure,
    pub(super) transient: bool,
    /// As the server asked, however long that is.
    pub(super) retry_after: Option<Duration>,
    /// The server, or the way to it, has too much to do.
    pub(super) overload: bool,
}

/// How far the exchange had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Head,
    Body,
}

/// The file that a request was to send could not be read.
#[derive(Debug)]
pub(super) struct PayloadError(pub(super) String);

impl Fault {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        let late = matches!(kind, Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout | Kind::Timeout);
        // A whole attempt that took too long would do so again.
        let transient = (late && kind != Kind::Timeout)
            || matches!(kind, Kind::Dns | Kind::Connect | Kind::Connection | Kind::Truncated);
        Fault { failure: Failure { kind, message: message.into() }, transient, retry_after: None, overload: late }
    }

    /// For a status of 400 or above.
    pub(super) fn status(status: StatusCode, headers: &HeaderMap) -> Self {
        let reason = status.canonical_reason().unwrap_or_default();
        let message = format!("{} {reason}", status.as_str()).trim_end().to_owned();
        Fault {
            failure: Failure { kind: Kind::Status, message },
            transient: match status.as_u16() {
                408 | 425 | 429 => true,
                // It will not learn the method or the version meanwhile.
                501 | 505 => false,
                code => code >= 500,
            },
            retry_after: headers.get(RETRY_AFTER).and_then(|value| wish(value.to_str().ok()?, SystemTime::now())),
            overload: matches!(status.as_u16(), 429 | 503),
        }
    }

    /// The body could not be kept.
    pub(super) fn output(error: &io::Error) -> Self {
        Fault::new(Kind::Output, format!("the body could not be kept: {error}"))
    }

    /// For an error of the client.
    pub(super) fn client(error: &reqwest::Error, stage: Stage, connect_timeout: Duration) -> Self {
        let kind = kind(error, stage);
        let message = match kind {
            Kind::ConnectTimeout => {
                format!("no connection within {} (--connect-timeout)", super::watch::show(connect_timeout))
            }
            Kind::Tls if distrusts(error) => {
                format!("{} (--cacert FILE trusts who signed it, --insecure anybody)", message(error))
            }
            _ => message(error),
        };
        let mut fault = Fault::new(kind, message);
        // "Try again later" is worth a retry, "there is no such host" is not.
        fault.transient &= kind != Kind::Dns || !says_no(&fault.failure.message);
        fault
    }
}

/// The kind of an error, by all of its causes.
fn kind(error: &reqwest::Error, stage: Stage) -> Kind {
    let causes = || causes(error);
    let any = |is: fn(&(dyn Error + 'static)) -> bool| causes().any(is);
    let any_io = |kinds: &[ErrorKind]| {
        causes().filter_map(|cause| cause.downcast_ref()).any(|io: &io::Error| kinds.contains(&io.kind()))
    };
    let any_hyper = |is: fn(&hyper::Error) -> bool| causes().filter_map(|cause| cause.downcast_ref()).any(is);

    if any(|cause| cause.is::<Denied>()) {
        return Kind::Denied;
    }
    if any(|cause| cause.is::<PayloadError>()) || error.is_builder() {
        return Kind::BadInput;
    }
    if any(|cause| cause.is::<rustls::Error>()) {
        return Kind::Tls;
    }
    if error.is_connect() {
        return match () {
            () if error.is_timeout() => Kind::ConnectTimeout,
            () if error.is_dns() => Kind::Dns,
            () => Kind::Connect,
        };
    }
    if any_hyper(hyper::Error::is_parse) {
        return Kind::Protocol;
    }
    let lost = any_hyper(hyper::Error::is_incomplete_message) || any_io(&LOST);
    match stage {
        Stage::Head if !lost && any_io(&[ErrorKind::InvalidData, ErrorKind::InvalidInput]) => Kind::Protocol,
        Stage::Head => Kind::Connection,
        // Chunks, and what decodes them, complain with an error of input and output; HTTP/2 has its own.
        Stage::Body if !lost && any(|cause| cause.is::<io::Error>()) => Kind::Protocol,
        Stage::Body => Kind::Truncated,
    }
}

/// Whether nobody known has signed the certificate.
fn distrusts(error: &reqwest::Error) -> bool {
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    causes(error).filter_map(|cause| cause.downcast_ref()).any(|cause: &rustls::Error| *cause == unknown)
}

/// How connections end before their time.
const LOST: [ErrorKind; 6] = [
    ErrorKind::UnexpectedEof,
    ErrorKind::ConnectionReset,
    ErrorKind::ConnectionAborted,
    ErrorKind::BrokenPipe,
    ErrorKind::NotConnected,
    ErrorKind::TimedOut,
];

/// An error and all its causes. What an [`io::Error`] was made of counts: its `source()` passes over that.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&cause| match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => cause.source(),
    })
}

/// The causes in a row, without those that say nothing or were said. The URL is in the record, and not all of it may be
/// seen: an error of the client would show it.
fn message(error: &reqwest::Error) -> String {
    let mut message = String::new();
    for cause in causes(error) {
        if cause.is::<reqwest::Error>() {
            continue;
        }
        let text = cause.to_string();
        if text.starts_with("client error (") || message.contains(&text) {
            continue;
        }
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&text);
    }
    if message.is_empty() {
        // It has no causes: something of the URL itself.
        message.push_str("the request can't be sent");
    }
    message
}

/// Whether an error of name resolution is an answer. The resolver of the system tells by its words alone.
fn says_no(message: &str) -> bool {
    ["not known", "No address associated", "does not resolve", "no usable address"]
        .iter()
        .any(|words| message.contains(words))
}

/// What `Retry-After` asks for: seconds, or a date. Nonsense asks for nothing.
fn wish(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // More seconds than fit are still a number.
        Err(_) if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => Some(Duration::MAX),
        // A moment ago is now.
        Err(_) => Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()),
    }
}

impl Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for PayloadError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_has_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        let wish = |value| wish(value, now);
        assert_eq!(wish("120"), Some(Duration::from_secs(120)));
        assert_eq!(wish(" 0 "), Some(Duration::ZERO));
        assert_eq!(wish("31536000"), Some(Duration::from_secs(31_536_000)));
        assert_eq!(wish("99999999999999999999999"), Some(Duration::MAX));
        assert_eq!(wish("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(wish("Sun, 06 Nov 1994 08:48:37 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-5", "1.5", "12 minutes", "Sun, 99 Nov 1994 08:48:37 GMT"] {
            assert_eq!(wish(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn some_statuses_are_worth_another_attempt() {
        let transient: Vec<u16> = (400..600)
            .filter(|&code| Fault::status(StatusCode::from_u16(code).unwrap(), &HeaderMap::new()).transient)
            .collect();
        let server: Vec<u16> = (500..600).filter(|code| ![501, 505].contains(code)).collect();
        assert_eq!(transient, [vec![408, 425, 429], server].concat());
    }

    #[test]
    fn a_status_is_told_with_its_reason() {
        let told = |code| Fault::status(StatusCode::from_u16(code).unwrap(), &HeaderMap::new()).failure.message;
        assert_eq!(told(404), "404 Not Found");
        assert_eq!(told(599), "599");
    }

    #[test]
    fn causes_inside_of_io_errors_are_seen() {
        let inner = io::Error::new(ErrorKind::ConnectionReset, PayloadError("inside".into()));
        let outer = io::Error::other(inner);
        assert!(causes(&outer).any(|cause| cause.is::<PayloadError>()));
        let kinds: Vec<_> = causes(&outer).filter_map(|cause| cause.downcast_ref().map(io::Error::kind)).collect();
        assert_eq!(kinds, [ErrorKind::Other, ErrorKind::ConnectionReset]);
    }
}
