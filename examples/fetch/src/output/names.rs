//! What the file of a body is called.
//!
//! A name follows from the request alone, so that a row that is done again finds its own file and nothing has to be
//! remembered. It stays below the directory, means the same on every file system, and two requests never have the same
//! one, not even where upper and lower case are one, nor does one need a directory where another has its file:
//!
//! 1. A part of a URL that is *plain* stays as it is: lower case, nothing special, not too long, not reserved anywhere.
//!    Any other is made safe and ends in `~` and a hash of what it was. No plain part has a `~` in it.
//! 2. Below the host, the names of directories have no dot, those of files have one: `/about` is kept as `about.body`
//!    and `/v1.2/a.html` as `v1_2~<hash>/a.html`. What would end in `.body` by itself counts as not plain.
//! 3. The directory of the host says what else makes up an origin: `example.com`, `example.com+8443`,
//!    `example.com+http`. No plain host has a `+`.
//! 4. Whatever else makes a difference (the query, a method other than GET, a body, headers of the row's own, a user)
//!    goes into the hash of the last part. A password does not.

use std::borrow::Cow;
use std::fmt::Write;

use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use super::Ticket;
use super::hash::Sha256;
use crate::request::{Payload, Request};
use crate::settings::Names;

/// The longest plain part.
const LONGEST_PART: usize = 100;

/// How much is left of a part that isn't.
const SHORTENED: usize = 60;

/// The longest name altogether. Some systems allow no more than 255 bytes for a whole path.
const LONGEST_NAME: usize = 200;

/// What a file without an extension gets.
const EXTENSION: &str = "body";

/// The name for somebody's body, relative, with `/` between its parts. `usual` headers make no difference.
pub(super) fn name(names: Names, whose: Ticket<'_>, usual: &HeaderMap) -> String {
    let Ticket { row, id, request } = whose;
    match names {
        Names::Path => mirrored(request, usual),
        Names::Hash => {
            let mut name = key(request, usual);
            name.insert(2, '/');
            name
        }
        Names::Id => match id {
            // A number may be that of another row, which has no id of its own.
            Some(id) if is_plain(id) && !id.bytes().all(|byte| byte.is_ascii_digit()) => id.to_string(),
            Some(id) => changed(id, None, None),
            None => row.to_string(),
        },
    }
}

/// A hash of everything that makes a request what it is.
pub(super) fn key(request: &Request, usual: &HeaderMap) -> String {
    Parts::of(request, usual).0.finish()
}

/// Hashes parts so that where one ends makes a difference.
struct Parts(Sha256);

impl Parts {
    fn new(first: &[u8]) -> Self {
        Parts(Sha256::new()).and(first)
    }

    fn and(mut self, part: &[u8]) -> Self {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    fn of(request: &Request, usual: &HeaderMap) -> Self {
        let Request { url, method, headers, body, timeout: _ } = request;
        let mut parts = Parts::new(url.scheme().as_bytes())
            .and(url.username().as_bytes())
            .and(url.host_str().unwrap_or_default().as_bytes())
            .and(&url.port_or_known_default().unwrap_or(0).to_le_bytes())
            .and(url.path().as_bytes());
        if let Some(query) = url.query() {
            parts = parts.and(b"query").and(query.as_bytes());
        }
        parts = parts.and(b"method").and(method.as_str().as_bytes());
        parts = match body {
            Payload::None => parts,
            Payload::Bytes(bytes) => parts.and(b"bytes").and(bytes),
            Payload::File(path) => parts.and(b"file").and(path.as_os_str().as_encoded_bytes()),
        };
        if headers != usual {
            // The order of different headers means nothing, and that in a map even less.
            let mut names: Vec<_> = headers.keys().collect();
            names.sort_unstable_by_key(|name| name.as_str());
            for name in names {
                parts = headers.get_all(name).iter().fold(parts.and(name.as_str().as_bytes()), |parts, value| {
                    parts.and(b"value").and(value.as_bytes())
                });
            }
        }
        parts
    }

    /// The first 64 bits, which is enough for names in one directory.
    fn short(self) -> String {
        let mut text = self.0.finish();
        text.truncate(16);
        text
    }
}

/// host/path
fn mirrored(request: &Request, usual: &HeaderMap) -> String {
    let url = &request.url;
    let simple = request.method == Method::GET
        && request.body == Payload::None
        && request.headers == *usual
        && url.username().is_empty();
    let more = (!simple).then(|| key(request, usual));
    let host = host(url);
    let path = url.path();
    let path = path.strip_prefix('/').unwrap_or(path);
    let (directories, last) = path.rsplit_once('/').map_or((None, path), |(before, last)| (Some(before), last));

    let mut name = String::with_capacity(host.len() + path.len() + 16);
    name.push_str(&host);
    name.push('/');
    for part in directories.into_iter().flat_map(|directories| directories.split('/')) {
        name.push_str(&directory(part));
        name.push('/');
    }
    name.push_str(&file(last, url.query(), more.as_deref()));
    if name.len() > LONGEST_NAME {
        // Without its directories; their names are in the hash instead, together with all the rest.
        name = format!("{host}/{}", changed(last, url.query(), Some(&key(request, usual))));
    }
    name
}

/// The directory for an origin.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let mut name = if is_plain(host) && !host.contains(['+', ',', '=', '@']) { host.to_owned() } else { safe(host) };
    if url.scheme() != "https" {
        name.push('+');
        name.push_str(url.scheme());
    }
    if let Some(port) = url.port() {
        let _ = write!(name, "+{port}"); // into a String, which can't fail
    }
    name
}

/// A part of the path that others are below of.
fn directory(part: &str) -> Cow<'_, str> {
    if is_plain(part) && !part.contains('.') { Cow::Borrowed(part) } else { Cow::Owned(safe(part)) }
}

/// The last part of the path.
fn file<'a>(part: &'a str, query: Option<&str>, more: Option<&str>) -> Cow<'a, str> {
    if query.is_some() || more.is_some() {
        return Cow::Owned(changed(part, query, more));
    }
    match part.rsplit_once('.') {
        None if part.is_empty() => Cow::Owned(format!("index.{EXTENSION}")),
        None if is_plain(part) && part != "index" => Cow::Owned(format!("{part}.{EXTENSION}")),
        Some((_, extension)) if is_plain(part) && extension != EXTENSION => Cow::Borrowed(part),
        _ => Cow::Owned(changed(part, None, None)),
    }
}

/// The name of a file that says what it was, and whose hash makes it another than all others.
fn changed(part: &str, query: Option<&str>, more: Option<&str>) -> String {
    let is_extension =
        |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (stem, extension) = match part.rsplit_once('.') {
        Some((stem, extension)) if is_extension(extension) => (stem, extension.to_ascii_lowercase()),
        _ => (part, EXTENSION.to_owned()),
    };
    let mut hash = Parts::new(part.as_bytes());
    for (word, text) in [("query", query), ("more", more)] {
        if let Some(text) = text {
            hash = hash.and(word.as_bytes()).and(text.as_bytes());
        }
    }
    let mut name = readable(stem);
    if let Some(query) = query {
        name.push('_');
        name.push_str(&readable(query));
        name.truncate(SHORTENED);
    }
    format!("{name}~{}.{extension}", hash.short())
}

/// The name of a directory made from a part that isn't plain.
fn safe(part: &str) -> String {
    format!("{}~{}", readable(part), Parts::new(part.as_bytes()).short())
}

/// What can be read of a part in safe characters, perhaps shortened. ASCII, so that it can be cut anywhere.
fn readable(part: &str) -> String {
    let byte = |byte: u8| match byte.to_ascii_lowercase() {
        byte @ (b'a'..=b'z' | b'0'..=b'9' | b'-') => char::from(byte),
        _ => '_',
    };
    let mut text: String = part.bytes().take(SHORTENED).map(byte).collect();
    if text.is_empty() || text.starts_with('-') {
        text.insert(0, '_');
    }
    text
}

/// Whether a part means the same everywhere, and nothing special anywhere.
fn is_plain(part: &str) -> bool {
    let characters = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'+' | b',' | b'=' | b'@');
    (1..=LONGEST_PART).contains(&part.len())
        && part.bytes().all(characters)
        // Neither hidden nor something that a program takes for an option.
        && !part.starts_with(['.', '-'])
        && !part.ends_with('.')
        && !is_device(part)
}

/// Whether Windows takes it for a device, which it does with any extension too.
fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default();
    match stem.len() {
        3 => matches!(stem, "con" | "prn" | "aux" | "nul"),
        4 => matches!(&stem[..3], "com" | "lpt") && stem.as_bytes()[3].is_ascii_digit(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Component, Path};

    use super::*;

    fn get(url: &str) -> Request {
        Request {
            url: url.parse().unwrap(),
            method: Method::GET,
            headers: HeaderMap::new(),
            body: Payload::None,
            timeout: None,
        }
    }

    fn of(url: &str) -> String {
        mirrored(&get(url), &HeaderMap::new())
    }

    #[test]
    fn what_is_plain_is_mirrored() {
        for (url, expected) in [
            ("https://example.com/", "example.com/index.body"),
            ("https://example.com/about", "example.com/about.body"),
            ("https://example.com/a/b/c.html", "example.com/a/b/c.html"),
            ("https://EXAMPLE.com:443/a/", "example.com/a/index.body"),
            ("https://example.com:8443/a.tar.gz", "example.com+8443/a.tar.gz"),
            ("http://example.com/a.b", "example.com+http/a.b"),
            ("http://127.0.0.1:8080/files/1.bin#part", "127.0.0.1+http+8080/files/1.bin"),
        ] {
            assert_eq!(of(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_not_says_what_it_was() {
        for (url, start, end) in [
            ("https://h.org/Photo.JPG", "h.org/photo~", ".jpg"),
            ("https://h.org/find.php?q=Two+Words", "h.org/find_q_two_words~", ".php"),
            ("https://h.org/v1.2/a.html", "h.org/v1_2~", "/a.html"),
            ("https://h.org/nul.txt", "h.org/nul~", ".txt"),
            ("https://h.org/COM1/a.b", "h.org/com1~", "/a.b"),
            ("https://h.org/-rf", "h.org/_-rf~", ".body"),
            ("https://h.org/.htaccess", "h.org/_~", ".htaccess"),
            ("https://h.org/..%2f..%2fetc%2fpasswd", "h.org/___2f___2fetc_2fpasswd~", ".body"),
            ("https://h.org/index", "h.org/index~", ".body"),
            ("https://h.org//a.b", "h.org/_~", "/a.b"),
            ("https://[2001:db8::1]/a.b", "_2001_db8__1_~", "/a.b"),
            ("https://user:secret@h.org/a.b", "h.org/a~", ".b"),
        ] {
            let name = of(url);
            assert!(name.starts_with(start) && name.ends_with(end), "{url} is kept as {name}");
        }
        assert_eq!(of("https://user:secret@h.org/a"), of("https://user:other@h.org/a"), "a password is not in it");
    }

    #[test]
    fn what_a_request_has_makes_a_difference() {
        let plain = get("https://h.org/a.b");
        let mut own = HeaderMap::new();
        own.insert("accept-language", "de".parse().unwrap());
        let others = [
            Request { method: Method::POST, ..plain.clone() },
            Request { body: Payload::Bytes("x".into()), ..plain.clone() },
            Request { body: Payload::File("x".into()), ..plain.clone() },
            Request { headers: own.clone(), ..plain.clone() },
        ];
        for names in [Names::Path, Names::Hash] {
            let name = |request| name(names, Ticket { row: 1, id: None, request }, &HeaderMap::new());
            let names: BTreeSet<_> = others.iter().chain([&plain]).map(name).collect();
            assert_eq!(names.len(), 5, "{names:?}");
        }
        assert_eq!(mirrored(&others[3], &own), mirrored(&plain, &HeaderMap::new()), "what all have is none");
    }

    #[test]
    fn ids() {
        let request = get("https://h.org/");
        let of = |id| name(Names::Id, Ticket { row: 17, id, request: &request }, &HeaderMap::new());
        assert_eq!(of(None), "17");
        assert_eq!(of(Some("cat.jpg")), "cat.jpg");
        assert_ne!(of(Some("17")), "17", "that is the file of row 17");
        for id in ["../../etc/passwd", "a/b", "Cat.jpg", "nul", "", ".", "..", "a\0b", "é", &"x".repeat(1_000)] {
            let name = of(Some(id));
            assert!(name.contains('~') && !name.contains('/') && name.len() <= 100, "{id:?} is kept as {name}");
        }
    }

    /// Names of any requests are safe, and no two of them are the same on any file system, nor is one a directory for
    /// the other. The parts are few and similar, so that what could clash does come together.
    #[test]
    fn no_two_requests_clash() {
        const PARTS: [&str; 34] = [
            "",
            "a",
            "A",
            "a.",
            ".a",
            "a.b",
            "A.b",
            "a.body",
            "body",
            "index",
            "index.body",
            "Index",
            "con",
            "con.b",
            "a%2fb",
            "a%2Fb",
            "a%2e",
            "-a",
            "a~b",
            "a~",
            "a+b",
            "a_b",
            "a b",
            "é",
            "a;b",
            "a:b",
            "a*",
            "..%5c",
            "%2e%2e%2f",
            "com1",
            "a,b=c",
            "a.html",
            "a.b.body",
            "$a",
        ];
        const QUERIES: [&str; 7] = ["", "?", "?a", "?A", "?a.b", "?/../..", "?a/b"];
        const ORIGINS: [&str; 9] = [
            "https://h.org",
            "http://h.org",
            "https://h.org:80",
            "http://h.org:443",
            "https://h.org.",
            "https://h.org+http",
            "https://h.org+80",
            "https://[::1]",
            "https://con",
        ];
        let long = ["x".repeat(101), "x".repeat(150), "X".repeat(100), format!("{}.b", "x".repeat(99))];
        let parts: Vec<&str> = PARTS.into_iter().chain(long.iter().map(String::as_str)).collect();
        let deep = ["a/".repeat(150), "a/".repeat(151), "A/".repeat(150), format!("{}a.b/", "a/".repeat(148))];
        let mut urls = Vec::new();
        for origin in ORIGINS {
            for first in &parts {
                for query in QUERIES {
                    urls.push(format!("{origin}/{first}{query}"));
                }
                if origin.ends_with("h.org") {
                    urls.extend(parts.iter().map(|second| format!("{origin}/{first}/{second}")));
                    urls.push(format!("{origin}/a/{first}/{first}?a"));
                }
                urls.extend(deep.iter().map(|deep| format!("{origin}/{deep}{first}")));
            }
        }

        let mut names = BTreeMap::new();
        for url in urls {
            let url: Url = url.parse().unwrap();
            let name = of(url.as_str());
            assert_eq!(name, name.to_ascii_lowercase());
            assert!(name.is_ascii() && name.len() <= LONGEST_NAME, "{url} is kept as {name}");
            assert!(Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))), "{name}");
            for part in name.split('/') {
                assert!(!part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.'), "{url}: {name}");
                assert!(!is_device(part) && !part.contains(['\\', ':', '*', '%', '$', ' ']), "{url}: {name}");
            }
            if let Some(other) = names.insert(name.clone(), url.clone()) {
                assert_eq!(other, url, "both are kept as {name}");
            }
        }
        for name in names.keys() {
            for (at, _) in name.match_indices('/') {
                assert!(!names.contains_key(&name[..at]), "{name} is below the file of another");
            }
        }
        assert!(names.len() > 4_000, "{}", names.len());
    }
}
