//! Web archives, read back with a library that is not ours.

mod common;

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use warc::{WarcHeader, WarcReader};

use self::common::{Server, Then, program, respond, run_with};

/// A record of an archive: its fields, and the block.
struct Entry {
    head: warc::RawRecordHeader,
    block: Vec<u8>,
}

impl Entry {
    fn field(&self, name: WarcHeader) -> &str {
        std::str::from_utf8(&self.head.as_ref()[&name]).unwrap()
    }

    /// The part after the empty line.
    fn payload(&self) -> &[u8] {
        let end = self.block.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        &self.block[end + 4..]
    }
}

fn read(path: &Path) -> Vec<Entry> {
    let reader = WarcReader::new(BufReader::new(MultiGzDecoder::new(File::open(path).unwrap())));
    reader.iter_raw_records().map(|record| record.unwrap()).map(|(head, block)| Entry { head, block }).collect()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn body(path: &str) -> Vec<u8> {
    match path {
        "/large" => "a line of a large body\n".repeat(100_000).into_bytes(),
        "/empty" => Vec::new(),
        path => path.as_bytes().to_vec(),
    }
}

#[test]
fn requests_and_responses_are_archived() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|asked, stream| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&body(&asked.path))?;
        match asked.path.as_str() {
            "/moved" => respond(stream, "302 Found", &["Location: /to"], b"")?,
            "/missing" => respond(stream, "404 Not Found", &[], b"no such thing")?,
            "/empty" => respond(stream, "200 OK", &[], b"")?,
            _ => respond(stream, "200 OK", &["Content-Encoding: gzip", "X-Name: value"], &gzip.finish()?)?,
        }
        Ok(Then::Keep)
    });
    let path = directory.path().join("a.warc.gz");
    let mut command = program();
    command.args(["--quiet", "--keep-errors", "--user", "name:secret", "--warc"]).arg(&path);
    let paths = ["/small", "/large", "/empty", "/moved", "/missing"];
    let run = run_with(command.args(paths.map(|path| server.url(path))), b"");
    assert_eq!(run.code, Some(1), "one is missing: {run:?}");

    let entries = read(&path);
    assert_eq!(entries[0].field(WarcHeader::WarcType), "warcinfo");
    assert_eq!(entries[0].field(WarcHeader::Filename), "a.warc.gz");
    // What was redirected has no request, for the one that was answered is not that of the row.
    assert_eq!(entries.len(), 2 * paths.len());
    let (requests, responses): (Vec<_>, Vec<_>) =
        entries[1..].iter().partition(|entry| entry.field(WarcHeader::WarcType) == "request");
    for response in responses {
        assert_eq!(response.field(WarcHeader::WarcType), "response");
        let id = response.field(WarcHeader::RecordID);
        let request = requests.iter().find(|request| request.field(WarcHeader::ConcurrentTo) == id);
        let url = response.field(WarcHeader::TargetURI);
        let path = &url[server.url("").len()..];
        let (status, expected) = match path {
            "/missing" => ("404", b"no such thing".to_vec()),
            path => ("200", body(path)),
        };
        assert!(response.payload() == expected, "{path}");
        assert_eq!(response.field(WarcHeader::PayloadDigest), digest(&expected), "{path}");
        assert_eq!(response.field(WarcHeader::BlockDigest), digest(&response.block), "{path}");
        let head = String::from_utf8_lossy(&response.block[..response.block.len() - expected.len()]).into_owned();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let length = format!("content-length: {}\r\n", expected.len());
        assert!(head.contains(&length) && !head.contains("encoding"), "{head}");
        assert_eq!(request.is_none(), path == "/to", "{path}");
        let Some(request) = request else { continue };
        let asked = String::from_utf8_lossy(&request.block);
        assert!(asked.starts_with("GET /") && asked.contains("host: 127.0.0.1:"), "{asked}");
        assert!(!asked.contains("authorization"), "{asked}");
    }
    let to = server.url("/to");
    assert!(entries[1..].iter().any(|entry| entry.field(WarcHeader::TargetURI) == to), "where a redirect led");
}

#[test]
fn an_archive_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.warc.gz");
    fs::write(&path, "precious").unwrap();
    let server = Server::echo();
    let run = run_with(program().args(["--quiet", "--warc"]).arg(&path).arg(server.url("/")), b"");
    assert!(run.code != Some(0) && run.stderr.contains("--warc"), "{run:?}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert!(server.asked().is_empty());
}
