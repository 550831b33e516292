//! Web archives: WARC 1.1, each record a gzip member of its own, as any reader of such files takes them.
//!
//! A request and its response are made and compressed as soon as the body is whole ([`Draft::finish`]), in memory or,
//! if it is large, in a file without a name. They are put into the archive when the record of the row is written
//! ([`Archive::append`]), so that both have the same order, no attempt that is repeated gets there, and what a killed
//! run has written too much is all at the end.
//!
//! What is archived is what a reader wants to see, and that is not what was sent over the wire byte by byte: bodies are
//! decoded, and the head says so (`content-encoding` and `transfer-encoding` are left out, `content-length` is that of
//! the decoded body, and HTTP/2 is written as HTTP/1.1). Redirects are followed before, so only the last response is
//! there. `authorization` and cookies of requests are left out.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use reqwest::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, PROXY_AUTHORIZATION};
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, TRANSFER_ENCODING};
use reqwest::{StatusCode, Version};
use serde::{Deserialize, Serialize, Serializer};
use warc::{BufferedBody, Record};

use super::body::Head;
use super::hash::Sha256;
use super::partial;
use crate::request::{Payload, Request, redacted};

/// Where a response stands in the archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "(u64, u64)")]
pub(crate) enum Place {
    /// Not there yet.
    Ahead(Arc<Members>),
    /// Offset and length in bytes.
    At(u64, u64),
}

/// A request and its response, ready to be put into the archive.
#[derive(Debug)]
pub(crate) struct Members {
    /// Where the response starts.
    request: u64,
    both: Compressed,
}

#[derive(Debug)]
enum Compressed {
    Memory(Vec<u8>),
    /// Written to its end.
    File(File, u64),
}

/// What has to be known before the body comes.
#[derive(Debug)]
pub(super) struct Draft {
    target: String,
    /// Empty if it isn't known.
    request: Vec<u8>,
    /// The head of the response, without its length and the empty line.
    head: Vec<u8>,
}

/// The bytes of a body.
#[derive(Debug)]
pub(super) enum Payloads<'a> {
    Memory(&'a [u8]),
    File(&'a File, u64),
}

impl From<(u64, u64)> for Place {
    fn from((offset, length): (u64, u64)) -> Self {
        Place::At(offset, length)
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Place::Ahead(_) => Err(serde::ser::Error::custom("the response is not in the archive yet")),
            Place::At(offset, length) => (offset, length).serialize(serializer),
        }
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Place::Ahead(one), Place::Ahead(other)) => Arc::ptr_eq(one, other),
            (Place::At(..), Place::At(..)) => self.at() == other.at(),
            _ => false,
        }
    }
}

impl Place {
    pub(super) fn at(&self) -> Option<(u64, u64)> {
        match *self {
            Place::Ahead(_) => None,
            Place::At(offset, length) => Some((offset, length)),
        }
    }

    /// How much memory it takes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Place::Ahead(members) => match &members.both {
                Compressed::Memory(bytes) => bytes.len(),
                // A file that is open costs something as well.
                Compressed::File(..) => 256 * 1024,
            },
            Place::At(..) => 0,
        }
    }
}

impl Draft {
    pub(super) fn new(request: &Request, head: &Head<'_>) -> Self {
        // A body that came in parts is whole now.
        let status = if head.resumed.is_some() { StatusCode::OK.as_u16() } else { head.status };
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
        let mut response = format!("{} {status} {reason}\r\n", version(head.version)).into_bytes();
        write_headers(&mut response, head.headers, |name| {
            let of_the_wire = [CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name);
            !of_the_wire && (head.resumed.is_none() || name != CONTENT_RANGE)
        });
        // After a redirect it was another request that got this response.
        let request = if *head.final_url == request.url { request_block(request, head) } else { Vec::new() };
        Draft { target: redacted(head.final_url), request, head: response }
    }

    /// Makes the records. `sha256` is that of the body; `spool` gives a file for those that are too large for memory.
    pub(super) fn finish(
        self,
        body: &Payloads<'_>,
        sha256: &str,
        spool: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<Place> {
        let Draft { target, request, mut head } = self;
        let length = match body {
            Payloads::Memory(bytes) => bytes.len() as u64,
            Payloads::File(_, length) => *length,
        };
        write!(head, "content-length: {length}\r\n\r\n")?;
        let (id, request_id) = (new_id(), new_id());
        let date = now();
        let common = format!("WARC-Target-URI: {target}\r\nWARC-Date: {date}\r\n");

        let mut both = Vec::new();
        if !request.is_empty() {
            let fields = format!(
                "WARC-Record-ID: {request_id}\r\n{common}WARC-Concurrent-To: {id}\r\n\
             Content-Type: application/http;msgtype=request\r\n"
            );
            both = member(both, "request", &fields, &request, &Payloads::Memory(b""))?;
        }
        let start = both.len() as u64;

        let mut hash = Sha256::new();
        hash.update(&head);
        match body {
            Payloads::Memory(bytes) => hash.update(bytes),
            &Payloads::File(mut file, _) => {
                file.rewind()?;
                partial::hash(file, &mut hash)?;
            }
        }
        let fields = format!(
            "WARC-Record-ID: {id}\r\n{common}WARC-Payload-Digest: sha256:{sha256}\r\nWARC-Block-Digest: sha256:{}\r\n\
             Content-Type: application/http;msgtype=response\r\n",
            hash.finish()
        );
        let both = match body {
            Payloads::Memory(_) => Compressed::Memory(member(both, "response", &fields, &head, body)?),
            Payloads::File(..) => {
                let mut file = spool()?;
                file.write_all(&both)?;
                let mut file = member(file, "response", &fields, &head, body)?;
                let length = file.stream_position()?;
                Compressed::File(file, length)
            }
        };
        Ok(Place::Ahead(Arc::new(Members { request: start, both })))
    }
}

/// The archive.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    /// Opened for appending, and locked.
    file: File,
    end: u64,
}

impl Archive {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).open(path);
        let file = file.with_context(|| format!("{} can't be opened (--warc)", path.display()))?;
        super::resume::lock(&file, path, "--warc")?;
        let end = file.metadata()?.len();
        Ok(Archive { path: path.to_owned(), file, end })
    }

    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Whether a whole record is at a place.
    pub(super) fn is_intact(&self, offset: u64, length: u64) -> bool {
        let mut file = &self.file;
        let start = file.seek(io::SeekFrom::Start(offset));
        // Its checksum is right, or it can't be read to its end.
        start.is_ok() && io::copy(&mut GzDecoder::new(file.take(length)), &mut io::sink()).is_ok_and(|bytes| bytes > 0)
    }

    /// Leaves out what comes after `end`, and starts the archive if nothing is left.
    pub(super) fn start_at(&mut self, end: u64) -> io::Result<()> {
        if end < self.end {
            self.file.set_len(end)?;
            self.end = end;
        }
        if end > 0 {
            return Ok(());
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().replace(['\r', '\n'], " ");
        let fields = format!(
            "WARC-Record-ID: {}\r\nWARC-Date: {}\r\nWARC-Filename: {name}\r\nContent-Type: application/warc-fields\r\n",
            new_id(),
            now(),
        );
        let content = concat!(
            "software: fetch/",
            env!("CARGO_PKG_VERSION"),
            "\r\nformat: WARC File Format 1.1\r\n\
             conformsTo: http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/\r\n\
             description: bodies are decoded; content-encoding and transfer-encoding are left out of the heads\r\n",
        );
        let info = member(Vec::new(), "warcinfo", &fields, content.as_bytes(), &Payloads::Memory(b""))?;
        self.put(&Compressed::Memory(info))
    }

    /// Puts a request and its response to the end.
    pub(super) fn append(&mut self, place: &Place) -> io::Result<Place> {
        match place {
            Place::At(..) => Ok(place.clone()),
            Place::Ahead(members) => {
                let start = self.end + members.request;
                self.put(&members.both)?;
                Ok(Place::At(start, self.end - start))
            }
        }
    }

    fn put(&mut self, what: &Compressed) -> io::Result<()> {
        let put = match what {
            Compressed::Memory(bytes) => self.file.write_all(bytes).map(|()| bytes.len() as u64),
            Compressed::File(file, length) => {
                let mut file = file;
                file.rewind().and_then(|()| io::copy(&mut file.take(*length), &mut self.file))
            }
        };
        match put {
            Ok(bytes) => {
                self.end += bytes;
                Ok(())
            }
            Err(error) => {
                // Half a record would make all that come after it unreadable.
                let _ = self.file.set_len(self.end);
                let message = format!("{} can't be written (--warc): {error}", self.path.display());
                Err(io::Error::new(error.kind(), message))
            }
        }
    }
}

/// Writes one record as a gzip member.
fn member<W: Write>(to: W, kind: &str, fields: &str, head: &[u8], body: &Payloads<'_>) -> io::Result<W> {
    let mut gzip = GzEncoder::new(to, Compression::default());
    let length = head.len() as u64
        + match body {
            Payloads::Memory(bytes) => bytes.len() as u64,
            Payloads::File(_, length) => *length,
        };
    write!(gzip, "WARC/1.1\r\nWARC-Type: {kind}\r\n{fields}Content-Length: {length}\r\n\r\n")?;
    gzip.write_all(head)?;
    match body {
        Payloads::Memory(bytes) => gzip.write_all(bytes)?,
        &Payloads::File(mut file, length) => {
            file.rewind()?;
            io::copy(&mut file.take(length), &mut gzip)?;
        }
    }
    gzip.write_all(b"\r\n\r\n")?;
    gzip.finish()
}

fn request_block(request: &Request, head: &Head<'_>) -> Vec<u8> {
    let url = &request.url;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let version = version(head.version);
    let mut block = format!("{} {}{query} {version}\r\n", request.method, url.path()).into_bytes();
    if !request.headers.contains_key(HOST) {
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        block.extend_from_slice(format!("host: {}{port}\r\n", url.host_str().unwrap_or_default()).as_bytes());
    }
    write_headers(&mut block, &request.headers, |name| ![AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name));
    block.extend_from_slice(b"\r\n");
    // One in a file is not archived: it may be large, and is there already.
    if let Payload::Bytes(bytes) = &request.body {
        block.extend_from_slice(bytes);
    }
    block
}

fn write_headers(to: &mut Vec<u8>, headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) {
    for (name, value) in headers.iter().filter(|(name, _)| wanted(name)) {
        to.extend_from_slice(name.as_str().as_bytes());
        to.extend_from_slice(b": ");
        to.extend_from_slice(value.as_bytes());
        to.extend_from_slice(b"\r\n");
    }
}

fn version(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" }
}

fn new_id() -> String {
    Record::<BufferedBody>::generate_record_id()
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use flate2::read::MultiGzDecoder;
    use warc::{WarcHeader, WarcReader};

    use super::*;

    fn request(url: &str) -> Request {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer secret".parse().unwrap());
        headers.insert("accept", "*/*".parse().unwrap());
        Request { url: url.parse().unwrap(), method: reqwest::Method::GET, headers, body: Payload::None, timeout: None }
    }

    fn place(url: &str, headers: &HeaderMap, body: &Payloads<'_>, sha256: &str) -> Place {
        let request = request(url);
        let head =
            Head { status: 200, version: Version::HTTP_2, headers, final_url: &request.url.clone(), resumed: None };
        Draft::new(&request, &head).finish(body, sha256, tempfile::tempfile).unwrap()
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::of(bytes)
    }

    #[test]
    fn another_reader_finds_what_was_archived() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.warc.gz");
        let mut archive = Archive::open(&path).unwrap();
        archive.start_at(0).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("content-encoding", "gzip"), ("transfer-encoding", "chunked"), ("content-length", "9"), ("x-a", "b")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        let small = b"hello".as_slice();
        let large = b"0123456789".repeat(100_000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&large).unwrap();
        let length = large.len() as u64;
        let bodies = [(small, Payloads::Memory(small)), (&large[..], Payloads::File(&file, length))];
        let mut places = Vec::new();
        for (bytes, payload) in &bodies {
            let place = place("https://u:p@h.org/a?b", &headers, payload, &sha256(bytes));
            places.push(archive.append(&place).unwrap().at().unwrap());
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), archive.len());

        let whole = MultiGzDecoder::new(File::open(&path).unwrap());
        let records: Vec<_> =
            WarcReader::new(BufReader::new(whole)).iter_raw_records().collect::<Result<_, _>>().unwrap();
        let kinds: Vec<_> =
            records.iter().map(|(head, _)| String::from_utf8_lossy(&head.as_ref()[&WarcHeader::WarcType])).collect();
        assert_eq!(kinds, ["warcinfo", "request", "response", "request", "response"]);
        for ((bytes, _), (head, block)) in bodies.iter().zip([&records[2], &records[4]]) {
            let field = |name| std::str::from_utf8(&head.as_ref()[&name]).unwrap();
            assert_eq!(field(WarcHeader::TargetURI), "https://h.org/a?b");
            assert_eq!(field(WarcHeader::BlockDigest), format!("sha256:{}", sha256(block)));
            assert_eq!(field(WarcHeader::PayloadDigest), format!("sha256:{}", sha256(bytes)));
            let start = block.len() - bytes.len();
            assert_eq!(&block[start..], *bytes);
            let expected = format!("HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: {}\r\n\r\n", bytes.len());
            assert_eq!(String::from_utf8_lossy(&block[..start]), expected);
        }
        let asked = String::from_utf8_lossy(&records[1].1);
        assert_eq!(asked, "GET /a?b HTTP/1.1\r\nhost: h.org\r\naccept: */*\r\n\r\n");

        for (offset, length) in places {
            assert!(archive.is_intact(offset, length));
            assert!(!archive.is_intact(offset, length - 1) && !archive.is_intact(offset + 1, length));
        }
    }

    /// What is too much is cut off, and nothing else.
    #[test]
    fn an_archive_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.warc.gz");
        let mut archive = Archive::open(&path).unwrap();
        archive.start_at(0).unwrap();
        let place = place("https://h.org/", &HeaderMap::new(), &Payloads::Memory(b"x"), &sha256(b"x"));
        let (offset, length) = archive.append(&place).unwrap().at().unwrap();
        archive.append(&place).unwrap();
        assert!(Archive::open(&path).unwrap_err().to_string().contains("--warc"), "it is in use");
        drop(archive);

        let mut archive = Archive::open(&path).unwrap();
        archive.start_at(offset + length).unwrap();
        assert_eq!(archive.append(&place).unwrap().at().unwrap().1, length);
        assert!(archive.is_intact(offset, length));
        archive.start_at(0).unwrap();
        assert!(archive.len() > 0 && archive.len() < offset, "there is a new first record");
    }
}
