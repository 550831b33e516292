//! Headers and methods that others wrote: what may be sent, and why the rest is refused.

use reqwest::Method;
use reqwest::header::{HeaderName, HeaderValue};

/// Headers that say where a message ends or what becomes of the connection. They follow from the request; a second
/// opinion is how one request gets smuggled in another.
const OURS: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The errors name the header, never its value, which may be a secret.
pub(crate) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let name = header_name(name)?;
    let mut content = HeaderValue::from_bytes(value.trim().as_bytes())
        .map_err(|_| format!("the header {name} has a line break or another control character in its value"))?;
    content.set_sensitive(matches!(name.as_str(), "authorization" | "cookie" | "proxy-authorization"));
    Ok((name, content))
}

/// A name that may be sent.
pub(crate) fn header_name(name: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:.60?} is no name of a header"))?;
    if OURS.contains(&name.as_str()) {
        return Err(format!("the header {name} is set by the program itself: leave it out"));
    }
    Ok(name)
}

/// Well-known methods may be written small.
pub(crate) fn method(text: &str) -> Result<Method, String> {
    let otherwise = || format!("{text:.60?} is no method: give one such as GET, POST or PUT");
    let method = Method::from_bytes(text.as_bytes()).map_err(|_| otherwise())?;
    let upper = Method::from_bytes(text.to_ascii_uppercase().as_bytes()).map_err(|_| otherwise())?;
    let known = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS, Method::PATCH];
    match known.into_iter().find(|known| *known == upper) {
        Some(known) => Ok(known),
        None if upper == Method::CONNECT => Err("CONNECT asks for a tunnel, not for a resource".into()),
        None => Ok(method),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_could_smuggle_a_request_is_refused() {
        for value in ["a\r\nb: c", "a\nb", "a\0", "a\rb"] {
            let error = header("x-a", value).unwrap_err();
            assert!(error.contains("x-a") && error.contains("control character"), "{error}");
        }
        for name in ["Content-Length", "transfer-encoding", "Connection", "TE"] {
            assert!(header(name, "1").unwrap_err().contains("itself"), "{name}");
        }
        for name in ["", " x", "x y", "x:", "x\r\n", "ü"] {
            assert!(header(name, "1").unwrap_err().contains("no name"), "{name}");
        }
        let (name, value) = header("X-Ü".replace('Ü', "U").as_str(), " ü\t").unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-u", "ü".as_bytes()));
        assert!(header("Authorization", "secret").unwrap().1.is_sensitive());
    }

    #[test]
    fn methods() {
        assert_eq!(method("get"), Ok(Method::GET));
        assert_eq!(method("PURGE").unwrap().as_str(), "PURGE");
        assert_eq!(method("purge").unwrap().as_str(), "purge");
        for bad in ["", "G T", "GET\r\n", "ü", "connect"] {
            assert!(method(bad).is_err(), "{bad}");
        }
    }
}
