//! Who the user is: `--user`, `--oauth2-bearer`, `--netrc`, and user names in URLs.
//!
//! What is said here goes to the host of the request's own URL. Nothing follows a redirect to another origin (see
//! `redirect`).

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use netrc::Netrc;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::settings::{Auth, HttpSettings};

#[derive(Debug)]
pub(super) struct Credentials {
    /// The same for all hosts.
    common: Option<HeaderValue>,
    netrc: Option<Netrc>,
}

impl Credentials {
    pub(super) fn new(settings: &HttpSettings) -> Result<Self> {
        let common = match &settings.auth {
            Auth::None => None,
            Auth::Basic { user, password } => Some(basic(user.as_bytes(), password.as_bytes())),
            Auth::Bearer(token) => {
                let value = format!("Bearer {token}");
                Some(secret(value.as_bytes()).context("the bearer token has characters that no header may have")?)
            }
        };
        Ok(Credentials { common, netrc: settings.netrc.as_deref().map(read).transpose()? })
    }

    /// What `Authorization` says to the host of a request's own URL, unless the request has said so itself.
    pub(super) fn of_user(&self, url: &Url) -> Option<HeaderValue> {
        self.common.clone().or_else(|| {
            let hosts = &self.netrc.as_ref()?.hosts;
            let entry = hosts.get(url.host_str()?).or_else(|| hosts.get("default"))?;
            Some(basic(entry.login.as_bytes(), entry.password.as_bytes()))
        })
    }
}

/// Takes user name and password out of a URL: they are sent in a header, and never as part of it.
pub(super) fn take(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let user: Vec<u8> = percent_decode_str(url.username()).collect();
    let password: Vec<u8> = percent_decode_str(url.password().unwrap_or_default()).collect();
    // Can't fail for a URL that has them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(basic(&user, &password))
}

fn basic(user: &[u8], password: &[u8]) -> HeaderValue {
    let both = BASE64_STANDARD.encode([user, b":", password].concat());
    secret(format!("Basic {both}").as_bytes()).unwrap_or_else(|_| HeaderValue::from_static("Basic Og=="))
}

fn secret(value: &[u8]) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_bytes(value)?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(file: &Path) -> Result<Netrc> {
    Netrc::from_file(file).map_err(|error| {
        let why = match error {
            // It shows what it couldn't make sense of, which may be a password; then it names the line.
            netrc::Error::Parsing { parser, .. } => {
                let message = parser.to_string();
                let line = message.rsplit_once(" (line ").and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or("?");
                format!("what stands at line {line}, or ends there, is not understood")
            }
            other => other.to_string(),
        };
        anyhow!("--netrc-file {} can't be used: {why}", file.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Option<HeaderValue>) -> String {
        value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn user_names_leave_the_url() {
        let mut url = Url::parse("http://us%65r:p%40ss%3A@example.com/a").unwrap();
        assert_eq!(text(take(&mut url)), format!("Basic {}", BASE64_STANDARD.encode("user:p@ss:")));
        assert_eq!(url.as_str(), "http://example.com/a");
        assert_eq!(take(&mut url), None);
        assert_eq!(text(take(&mut Url::parse("http://token@example.com/").unwrap())), "Basic dG9rZW46");
    }

    #[test]
    fn netrc_knows_hosts_and_maybe_a_default() {
        let entries = "machine a.example login ann password secret\n";
        let of = |entries: &str, url: &str| {
            let credentials = Credentials { common: None, netrc: Some(entries.parse().unwrap()) };
            text(credentials.of_user(&Url::parse(url).unwrap()))
        };
        assert_eq!(of(entries, "http://a.example:8080/"), format!("Basic {}", BASE64_STANDARD.encode("ann:secret")));
        assert_eq!(of(entries, "http://b.example/"), "");
        let entries = format!("{entries}default login any password one\n");
        assert_eq!(of(&entries, "http://b.example/"), format!("Basic {}", BASE64_STANDARD.encode("any:one")));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", basic(b"user", b"password")).contains("Basic"));
    }
}
