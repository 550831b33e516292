//! One row of the input: a request to send, or what was wrong with it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

/// One row of the input. Each gets exactly one record.
#[derive(Debug)]
pub(crate) struct Row {
    /// From 1, over all inputs together, templates expanded, bad rows counted.
    pub(crate) number: u64,
    /// What the row calls itself; by default its number.
    pub(crate) id: Option<Box<str>>,
    pub(crate) content: Result<Arc<Request>, BadRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) url: Url,
    pub(crate) method: Method,
    /// Those of the row and those of the command line together. Without the ones of authentication by netrc.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Payload,
    /// Instead of `--max-time`.
    pub(crate) timeout: Option<Duration>,
}

/// What a request sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Payload {
    #[default]
    None,
    Bytes(Bytes),
    /// Read when it is sent.
    File(PathBuf),
}

/// A row that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadRow {
    /// As it was written, without passwords and shortened; empty if it had none.
    pub(crate) url: String,
    /// Names the file and the line, and says what would be right.
    pub(crate) message: String,
}

impl Row {
    /// The bytes that it takes, about. A body that it shares with all others, that of the command line, takes none.
    pub(crate) fn size(&self) -> usize {
        let content = match &self.content {
            Ok(request) => request.size(),
            Err(bad) => bad.url.len() + bad.message.len(),
        };
        size_of::<Row>() + self.id.as_ref().map_or(0, |id| id.len()) + content
    }

    /// Its URL as records show it.
    pub(crate) fn url(&self) -> String {
        self.content.as_ref().map_or_else(|bad| bad.url.clone(), |request| redacted(&request.url))
    }
}

impl Request {
    fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let body = match &self.body {
            Payload::Bytes(bytes) if bytes.is_unique() => bytes.len(),
            Payload::Bytes(_) | Payload::None => 0,
            Payload::File(path) => path.as_os_str().len(),
        };
        size_of::<Request>() + self.url.as_str().len() + headers.sum::<usize>() + body
    }

    /// The lane it waits in: scheme, host and port.
    pub(crate) fn origin(&self) -> Origin {
        Origin::of(&self.url)
    }
}

/// Scheme, host and port: what has a queue, a limit and a "not before" of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin {
    https: bool,
    host: Box<str>,
    port: u16,
}

impl Origin {
    pub(crate) fn of(url: &Url) -> Self {
        Origin {
            https: url.scheme() == "https",
            host: url.host_str().unwrap_or_default().into(),
            port: url.port_or_known_default().unwrap_or(0),
        }
    }

    /// Whether it is that of a URL.
    pub(crate) fn is_of(&self, url: &Url) -> bool {
        self.https == (url.scheme() == "https")
            && url.host_str().unwrap_or_default() == &*self.host
            && url.port_or_known_default().unwrap_or(0) == self.port
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if self.port == if self.https { 443 } else { 80 } { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// A URL without user name and password, as records and messages show it.
pub(crate) fn redacted(url: &Url) -> String {
    if url.username().is_empty() && url.password().is_none() {
        return url.as_str().to_owned();
    }
    let mut url = url.clone();
    // Fails only for URLs without a host, which have neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}
