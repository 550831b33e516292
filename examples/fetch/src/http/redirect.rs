//! From a redirect to the next request: the rules of RFC 9110, section 15.4, for method and body, and what must not
//! follow to another origin.
//!
//! The client could do this, but would send credentials again from the second redirect within the other origin on.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap};
use reqwest::header::{LOCATION, PROXY_AUTHORIZATION, TRANSFER_ENCODING};
use reqwest::{Method, StatusCode, Url};

use super::failure::Fault;
use crate::output::record::Kind;
use crate::request::Request;

/// One request on the way to the response.
#[derive(Clone, Debug)]
pub(super) struct Hop<'a> {
    pub(super) url: Cow<'a, Url>,
    pub(super) method: Method,
    /// Whether the request's body goes along.
    pub(super) body: bool,
    /// It never left the origin of the request: what is secret may go along.
    pub(super) trusted: bool,
    /// Redirects so far.
    count: usize,
}

impl<'a> Hop<'a> {
    pub(super) fn first(request: &'a Request) -> Self {
        Hop { url: Cow::Borrowed(&request.url), method: request.method.clone(), body: true, trusted: true, count: 0 }
    }

    /// Where a response leads; `None` if it is the last one.
    pub(super) fn next(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        most: usize,
    ) -> Result<Option<Hop<'static>>, Fault> {
        if most == 0 || !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let Some(location) = headers.get(LOCATION) else { return Ok(None) };
        // Where the bytes are no UTF-8, they are sent back as they came.
        let location = match str::from_utf8(location.as_bytes()) {
            Ok(location) => Cow::Borrowed(location),
            Err(_) => Cow::from(percent_encode(location.as_bytes(), &AsciiSet::EMPTY)),
        };
        let fault = |message: String| Fault::new(Kind::Redirect, message);
        let url = self.url.join(&location).map_err(|error| fault(format!("redirected to no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(fault(format!("redirected to {}:, which is not http: or https:", url.scheme())));
        }
        if self.count >= most {
            return Err(fault(format!("more redirects than --max-redirs {most}")));
        }
        let to_get = match status.as_u16() {
            301 | 302 => self.method == Method::POST,
            303 => self.method != Method::HEAD,
            _ => false,
        };
        Ok(Some(Hop {
            method: if to_get { Method::GET } else { self.method.clone() },
            body: self.body && !to_get && status != StatusCode::SEE_OTHER,
            trusted: self.trusted && url.origin() == self.url.origin(),
            count: self.count + 1,
            url: Cow::Owned(url),
        }))
    }

    /// Takes out the headers of a request that don't belong to this hop.
    pub(super) fn clean(&self, headers: &mut HeaderMap) {
        if !self.trusted {
            // A host of the user's own choice was meant for the first one.
            for name in [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, HOST] {
                headers.remove(name);
            }
        }
        if !self.body {
            for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING] {
                headers.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn hop(method: Method) -> Hop<'static> {
        let url = Cow::Owned(Url::parse("http://a.example/dir/page").unwrap());
        Hop { url, method, body: true, trusted: true, count: 0 }
    }

    fn to(location: &str) -> HeaderMap {
        HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(location).unwrap())])
    }

    fn next(hop: &Hop<'_>, status: u16, location: &str) -> Hop<'static> {
        hop.next(StatusCode::from_u16(status).unwrap(), &to(location), 10).unwrap().unwrap()
    }

    #[test]
    fn methods_and_bodies_change_as_browsers_do_it() {
        for (status, method, expected, body) in [
            (301, Method::POST, Method::GET, false),
            (302, Method::POST, Method::GET, false),
            (302, Method::PUT, Method::PUT, true),
            (303, Method::PUT, Method::GET, false),
            (303, Method::HEAD, Method::HEAD, false),
            (307, Method::POST, Method::POST, true),
            (308, Method::POST, Method::POST, true),
            (301, Method::GET, Method::GET, true),
        ] {
            let next = next(&hop(method.clone()), status, "/x");
            assert_eq!((next.method, next.body), (expected, body), "{status} {method}");
        }
    }

    #[test]
    fn trust_ends_with_the_origin_and_does_not_come_back() {
        let first = hop(Method::GET);
        assert!(next(&first, 302, "other").trusted);
        for elsewhere in ["http://b.example/", "https://a.example/", "http://a.example:8080/", "//b.example/"] {
            let second = next(&first, 302, elsewhere);
            assert!(!second.trusted, "{elsewhere}");
            assert!(!next(&second, 302, "/further").trusted);
            assert!(!next(&second, 302, "http://a.example/").trusted);
        }
        let mut headers = HeaderMap::new();
        for name in [AUTHORIZATION, COOKIE, CONTENT_TYPE] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        next(&first, 302, "http://b.example/").clean(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [CONTENT_TYPE]);
    }

    #[test]
    fn bytes_of_any_character_set_come_back() {
        for (location, path) in [(&b"/caf\xe9?a=%20b"[..], "/caf%E9?a=%20b"), ("/caf\u{e9}".as_bytes(), "/caf%C3%A9")] {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_bytes(location).unwrap())]);
            let next = hop(Method::GET).next(StatusCode::FOUND, &headers, 1).unwrap().unwrap();
            assert_eq!(next.url.as_str(), format!("http://a.example{path}"));
        }
    }

    #[test]
    fn there_is_a_limit() {
        let mut hop = hop(Method::GET);
        for _ in 0..3 {
            hop = hop.next(StatusCode::FOUND, &to("/"), 3).unwrap().unwrap();
        }
        assert_eq!(hop.next(StatusCode::FOUND, &to("/"), 3).unwrap_err().failure.kind, Kind::Redirect);
    }

    #[test]
    fn not_every_location_is_followed() {
        let hop = hop(Method::GET);
        for location in ["ftp://a.example/", "file:///etc/passwd", "http://", "data:text/plain,x"] {
            let outcome = hop.next(StatusCode::FOUND, &to(location), 3);
            assert_eq!(outcome.unwrap_err().failure.kind, Kind::Redirect, "{location}");
        }
        assert!(hop.next(StatusCode::FOUND, &HeaderMap::new(), 3).unwrap().is_none());
        assert!(hop.next(StatusCode::OK, &to("/"), 3).unwrap().is_none());
        assert!(hop.next(StatusCode::FOUND, &to("/"), 0).unwrap().is_none());
    }
}
