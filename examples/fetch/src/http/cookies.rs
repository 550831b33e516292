//! `--cookies`: what servers set goes back to them, for as long as the run lasts.
//!
//! The client could do this by itself, but would take the URL of every request apart once more, wanted or not: a tenth
//! of what a small request takes on the thread of the connections.

use cookie_store::{CookieStore, RawCookie};
use parking_lot::RwLock;
use reqwest::Url;
use reqwest::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};

#[derive(Debug, Default)]
pub(super) struct Cookies(RwLock<CookieStore>);

impl Cookies {
    /// Adds those for this URL, unless the request has its own.
    pub(super) fn add(&self, headers: &mut HeaderMap, url: &Url) {
        if headers.contains_key(COOKIE) {
            return;
        }
        let cookies = self.0.read();
        let cookies: Vec<_> = cookies.get_request_values(url).map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty()
            && let Ok(value) = HeaderValue::try_from(cookies.join("; "))
        {
            headers.insert(COOKIE, value);
        }
    }

    /// Keeps what the response from this URL sets. What is no cookie is left out.
    pub(super) fn keep(&self, headers: &HeaderMap, url: &Url) {
        if headers.contains_key(SET_COOKIE) {
            let text = |value| str::from_utf8(HeaderValue::as_bytes(value)).ok();
            let set = headers.get_all(SET_COOKIE).iter().filter_map(text);
            let set = set.filter_map(|text| RawCookie::parse(text.to_owned()).ok());
            self.0.write().store_response_cookies(set, url);
        }
    }
}
