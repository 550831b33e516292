//! `--if-changed`: what the records of an earlier run say about a URL, so that it is sent only if it has changed since.
//!
//! The file stays where it is: in memory is, for each URL that has a validator, a hash and the place of its line (16
//! bytes). The line is read back when the URL's turn comes.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE};
use serde::Deserialize;

use crate::output::record::Record;
use crate::request::{Request, redacted};

#[derive(Debug)]
pub(super) struct Earlier {
    file: Mutex<BufReader<File>>,
    /// Hash of the URL and offset of the line, by hash.
    lines: Vec<(u64, u64)>,
    hasher: RandomState,
}

/// What the server said of a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Validators {
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

/// As much of a record as is needed here.
#[derive(Deserialize)]
struct Line {
    url: String,
    #[serde(default)]
    method: String,
    status: Option<u16>,
    error: Option<serde::de::IgnoredAny>,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Line {
    /// Of lines that are no records, as the last one of a run that was killed may be, and of records that say nothing
    /// of use.
    fn parse(line: &[u8]) -> Option<Self> {
        let line: Line = serde_json::from_slice(line).ok()?;
        let good = line.error.is_none() && matches!(line.status?, 200..300 | 304);
        let useful = line.etag.is_some() || line.last_modified.is_some();
        (good && useful && matches!(line.method.as_str(), "GET" | "HEAD")).then_some(line)
    }
}

impl Earlier {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let unreadable = || format!("--if-changed can't read {}", path.display());
        let mut file = BufReader::new(File::open(path).with_context(unreadable)?);
        let hasher = RandomState::new();
        let (mut lines, mut offset, mut line) = (Vec::new(), 0, Vec::new());
        let mut has_records = false;
        loop {
            line.clear();
            let length = file.read_until(b'\n', &mut line).with_context(unreadable)? as u64;
            if length == 0 {
                break;
            }
            // Every record begins like this, also one that was cut.
            has_records |= line.starts_with(b"{\"id\":");
            if let Some(Line { url, .. }) = Line::parse(&line) {
                has_records = true;
                lines.push((hasher.hash_one(url.as_str()), offset));
            }
            offset += length;
        }
        ensure!(
            has_records || offset == 0,
            "--if-changed: there are no records in {}: give the file of --records of an earlier run",
            path.display()
        );
        // Of several records of a URL the last one counts, as a later run appends.
        lines.sort_unstable_by_key(|&(hash, offset)| (hash, u64::MAX - offset));
        lines.dedup_by_key(|&mut (hash, _)| hash);
        lines.shrink_to_fit();
        Ok(Earlier { file: Mutex::new(file), lines, hasher })
    }

    /// What is known about a request's URL, if the request leaves room for a condition.
    pub(super) fn find(&self, request: &Request) -> Option<Validators> {
        let conditional =
            [RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE].iter().any(|name| request.headers.contains_key(name));
        if conditional || !matches!(request.method, Method::GET | Method::HEAD) {
            return None;
        }
        let url = redacted(&request.url);
        let hash = self.hasher.hash_one(url.as_str());
        let index = self.lines.binary_search_by_key(&hash, |&(hash, _)| hash).ok()?;
        let line = self.read(self.lines[index].1)?;
        (line.url == url && line.method == request.method.as_str())
            .then_some(Validators { etag: line.etag, last_modified: line.last_modified })
    }

    fn read(&self, offset: u64) -> Option<Line> {
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut line = Vec::new();
        file.seek(SeekFrom::Start(offset)).ok()?;
        file.read_until(b'\n', &mut line).ok()?;
        Line::parse(&line)
    }
}

impl Validators {
    /// Makes a request conditional.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in [(IF_NONE_MATCH, &self.etag), (IF_MODIFIED_SINCE, &self.last_modified)] {
            if let Some(value) = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
    }

    /// For the record of a response that says that nothing has changed: what it doesn't repeat still holds.
    pub(super) fn keep(self, record: &mut Record) {
        record.etag = record.etag.take().or(self.etag);
        record.last_modified = record.last_modified.take().or(self.last_modified);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use reqwest::Url;

    use super::*;
    use crate::request::Payload;

    fn request(url: &str) -> Request {
        let url = Url::parse(url).unwrap();
        Request { url, method: Method::GET, headers: HeaderMap::new(), body: Payload::None, timeout: None }
    }

    fn earlier(lines: &str) -> Earlier {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        Earlier::open(file.path()).unwrap()
    }

    #[test]
    fn good_records_with_validators_are_found() {
        let earlier = earlier(concat!(
            r#"{"url":"http://a/1","method":"GET","status":200,"etag":"\"old\""}"#,
            "\n",
            r#"{"url":"http://a/2","method":"GET","status":404,"error":{"kind":"status","message":""},"etag":"\"x\""}"#,
            "\nno record\n\n",
            r#"{"url":"http://a/3","method":"GET","status":200}"#,
            "\n",
            r#"{"url":"http://a/4","method":"POST","status":200,"etag":"\"x\""}"#,
            "\n",
            r#"{"url":"http://a/5","method":"GET","status":304,"last_modified":"yesterday"}"#,
            "\n",
            r#"{"url":"http://a/1","method":"GET","status":200,"etag":"\"new\""}"#,
            "\n",
            r#"{"url":"http://a/6","method":"GET","status":200,"etag":"cut"#,
        ));
        assert_eq!(earlier.lines.len(), 2);
        let etag = |url: &str| earlier.find(&request(url)).and_then(|found| found.etag);
        assert_eq!(etag("http://a/1").as_deref(), Some("\"new\""));
        assert_eq!(etag("http://user:password@a/1").as_deref(), Some("\"new\"")); // records are without
        for url in ["http://a/2", "http://a/3", "http://a/4", "http://a/6", "http://a/7"] {
            assert_eq!(earlier.find(&request(url)), None, "{url}");
        }
        let fifth = earlier.find(&request("http://a/5")).unwrap();
        assert_eq!(fifth.last_modified.as_deref(), Some("yesterday"));
        let mut headers = HeaderMap::new();
        fifth.apply(&mut headers);
        assert_eq!(headers.get(IF_MODIFIED_SINCE).unwrap(), "yesterday");
    }

    #[test]
    fn requests_that_are_special_are_left_alone() {
        let earlier = earlier("{\"url\":\"http://a/\",\"method\":\"GET\",\"status\":200,\"etag\":\"x\"}\n");
        assert!(earlier.find(&request("http://a/")).is_some());
        let post = Request { method: Method::POST, ..request("http://a/") };
        assert_eq!(earlier.find(&post), None);
        let mut own = request("http://a/");
        own.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("mine"));
        assert_eq!(earlier.find(&own), None);
    }
}
