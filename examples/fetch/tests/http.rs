//! What the program says to servers, and what it makes of what they say when all is well.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use self::common::{Run, Server, Then, ok, program, read_request, respond, run, run_with, serve_http2};

/// A run that must succeed.
fn good<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Run {
    let run = run_with(program().arg("--quiet").args(arguments), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run
}

fn in_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// As each connection that waits takes memory and a descriptor.
#[test]
fn connections_to_many_hosts_wait_for_a_shorter_time() {
    const MANY: u32 = 513;
    // Which connection the client closes first; and one request that lasts until it has done so.
    let (closed, first) = mpsc::channel::<u32>();
    let (first, start) = (Mutex::new(first), Instant::now());
    let crowded = Arc::new(Mutex::new(start));
    let reached = crowded.clone();
    let proxy = Server::raw(move |_, stream| {
        let (mut reader, mut writer, mut last) = (BufReader::new(&stream), &stream, 0);
        while let Some(asked) = read_request(&mut reader)? {
            let host = asked.path.trim_start_matches("http://h").trim_end_matches('/').parse().unwrap_or(0);
            let body = match host {
                0 => first.lock().unwrap().recv_timeout(Duration::from_secs(60)).expect("one is closed").to_string(),
                host => host.to_string(),
            };
            // The first hundreds are there to be many.
            let connection = if (1..MANY - 50).contains(&host) { "close" } else { "keep-alive" };
            if host == MANY {
                *reached.lock().unwrap() = Instant::now();
            }
            let length = body.len();
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}")?;
            if connection == "close" {
                return Ok(());
            }
            last = host;
        }
        if last > 0 {
            let _ = closed.send(last);
        }
        Ok(())
    });
    let run = good(["--proxy", &proxy.url("/"), "--body", "text", "http://hold/", "http://h{1..560}/"]);
    let first: u32 = run.record("http://hold/")["body"].as_str().unwrap().parse().unwrap();
    // Whoever takes longer for so many is no crowd.
    if crowded.lock().unwrap().duration_since(start) < Duration::from_secs(3) {
        assert!(first >= MANY - 1, "the connection to host {first} was closed first, as if it were one of few");
    }
}

#[test]
fn a_record_says_what_came() {
    let server = Server::start(|_, stream| {
        respond(
            stream,
            "200 OK",
            &["Content-Type: text/plain", "ETag: \"one\"", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
            b"hello",
        )?;
        Ok(Then::Keep)
    });
    let url = server.url("/a?b#c");
    let record = good([&url]).record(&url);
    assert_eq!(record["status"], 200);
    assert_eq!(record["method"], "GET");
    assert_eq!(record["bytes"], 5);
    assert_eq!(record["sha256"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_eq!(record["content_type"], "text/plain");
    assert_eq!(record["etag"], "\"one\"");
    assert_eq!(record["last_modified"], "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(record["final_url"], server.url("/a?b"));
    assert_eq!(record["attempts"], 1);
    let (ttfb, seconds) = (record["ttfb_seconds"].as_f64().unwrap(), record["seconds"].as_f64().unwrap());
    assert!(0.0 < ttfb && ttfb <= seconds, "{record}");
    let asked = &server.asked()[0];
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("GET", "/a?b"));
    assert_eq!(asked.header("accept"), Some("*/*"));
    assert_eq!(asked.header("accept-encoding"), Some("gzip, br, zstd"));
    assert!(asked.header("user-agent").unwrap().starts_with("fetch/"));
}

#[test]
fn connections_are_used_again() {
    let server = Server::echo();
    let template = server.url("/{1..300}");
    let run = good(["--concurrency", "8", &template]);
    assert_eq!(run.records().len(), 300);
    // A few more than requests at once: a connection is free only a moment after the end of its body.
    assert!(server.connections() <= 40, "{}", server.connections());
}

#[test]
fn errors_have_their_status_and_no_body() {
    let server = Server::start(|asked, stream| {
        let status = asked.path.trim_start_matches('/');
        let body = if asked.path == "/500" { vec![b'x'; 1_000_000] } else { b"sorry".to_vec() };
        respond(stream, &format!("{status} Nothing Doing"), &["Content-Type: text/html"], &body)?;
        Ok(Then::Keep)
    });
    let url = server.url("/404");
    let run = run(["--quiet", "--body", "text", &url]);
    assert_eq!(run.code, Some(1));
    let record = run.record(&url);
    assert_eq!((record["status"].as_u64(), record["attempts"].as_u64()), (Some(404), Some(1)));
    assert_eq!((run.kind(&url).as_str(), run.message(&url).as_str()), ("status", "404 Not Found"));
    assert_eq!((record["bytes"].as_u64(), record.get("body")), (Some(5), None));
    assert_eq!(record["content_type"], "text/html");

    let kept = run_with(program().args(["--quiet", "--body", "text", "--keep-errors", &url]), b"");
    assert_eq!((kept.code, kept.kind(&url).as_str()), (Some(1), "status"));
    assert_eq!(kept.record(&url)["body"], "sorry");

    // A long one is not read.
    let url = server.url("/500");
    let run = run_with(program().args(["--quiet", "--retry", "1", "--retry-delay", "10ms", &url]), b"");
    assert_eq!((run.kind(&url).as_str(), run.record(&url)["attempts"].as_u64()), ("status", Some(2)));
    assert_eq!(run.record(&url)["bytes"], 0);
}

#[test]
fn what_is_not_idempotent_is_not_sent_again() {
    let server = Server::start(|_, stream| {
        respond(stream, "503 Service Unavailable", &[], b"")?;
        Ok(Then::Keep)
    });
    let url = server.url("/");
    let run = run(["--quiet", "--retry-delay", "10ms", "-d", "x", &url]);
    assert_eq!((run.record(&url)["attempts"].as_u64(), server.asked().len()), (Some(1), 1));
    let run = run_with(program().args(["--quiet", "--retry-delay", "10ms", "--retry-unsafe", "-d", "x", &url]), b"");
    assert_eq!((run.record(&url)["attempts"].as_u64(), server.asked().len()), (Some(3), 4));
}

#[test]
fn bodies_that_were_cut_are_fetched_again() {
    let cut = AtomicBool::new(true);
    let server = Server::start(move |_, stream| {
        if cut.swap(false, Ordering::SeqCst) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
            return Ok(Then::Close);
        }
        ok(stream, b"all of it.")?;
        Ok(Then::Keep)
    });
    let url = server.url("/");
    let record = good(["--retry-delay", "10ms", "--body", "text", &url]).record(&url);
    assert_eq!((record["attempts"].as_u64(), record["body"].as_str()), (Some(2), Some("all of it.")));
}

/// Sends a long body in two halves: the first time only one, with a validator; then what is asked for.
fn halved(body: &'static [u8], validator: &'static str, wrong_range: bool) -> Server {
    Server::start(move |asked, stream| {
        let half = body.len() / 2;
        match asked.header("range") {
            None if asked.connection == 0 => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: {validator}\r\n\r\n", body.len())?;
                stream.write_all(&body[..half])?;
                return Ok(Then::Close);
            }
            None => respond(stream, "200 OK", &[&format!("ETag: {validator}")], body)?,
            Some(range) => {
                let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                let shown = if wrong_range { start + 1 } else { start };
                let content = format!("Content-Range: bytes {shown}-{}/{}", body.len() - 1, body.len());
                respond(stream, "206 Partial Content", &[&content, &format!("ETag: {validator}")], &body[start..])?;
            }
        }
        Ok(Then::Keep)
    })
}

/// Long enough to be worth it.
static LONG: [u8; 4_000_000] = [b'x'; 4_000_000];

#[test]
fn long_bodies_that_were_cut_are_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let server = halved(&LONG, "\"strong\"", false);
    let url = server.url("/long");
    let run = good(["--retry-delay", "10ms", "-o", in_text(directory.path()), &url]);
    let record = run.record(&url);
    assert_eq!(record["bytes"].as_u64(), Some(LONG.len() as u64));
    let file = directory.path().join(record["file"].as_str().unwrap());
    assert!(std::fs::read(file).unwrap() == LONG);
    let asked = server.asked();
    assert_eq!(asked[1].header("range"), Some("bytes=2000000-"));
    assert_eq!(asked[1].header("if-range"), Some("\"strong\""));
    assert_eq!(asked[1].header("accept-encoding"), Some("identity"));
    assert_eq!(asked.len(), 2);
}

#[test]
fn a_part_that_does_not_fit_is_not_put_there() {
    let directory = tempfile::tempdir().unwrap();
    for server in [halved(&LONG, "\"strong\"", true), halved(&LONG, "W/\"weak\"", false)] {
        let url = server.url("/long");
        let run = good(["--retry-delay", "10ms", "-o", in_text(directory.path()), &url]);
        let record = run.record(&url);
        assert_eq!(record["bytes"].as_u64(), Some(LONG.len() as u64), "{run:?}");
        let file = directory.path().join(record["file"].as_str().unwrap());
        assert!(std::fs::read(file).unwrap() == LONG);
    }
}

#[test]
fn a_part_that_nobody_asked_for_is_an_error() {
    let server = Server::start(|_, stream| {
        respond(stream, "206 Partial Content", &["Content-Range: bytes 0-4/10"], b"first")?;
        Ok(Then::Keep)
    });
    let (directory, url) = (tempfile::tempdir().unwrap(), server.url("/"));
    let whole = run(["--quiet", "--keep-errors", "-o", in_text(directory.path()), &url]);
    let record = whole.record(&url);
    assert_eq!((whole.code, whole.kind(&url).as_str()), (Some(1), "partial"), "{whole:?}");
    assert_eq!((record["status"].as_u64(), record["bytes"].as_u64(), record.get("file")), (Some(206), Some(5), None));
    assert_eq!(common::files(directory.path()).len(), 0);
    assert_eq!(server.asked().len(), 1, "it would be the same again");

    let part = good(["-H", "Range: bytes=0-4", "--body", "text", &url]);
    assert_eq!((part.record(&url)["status"].as_u64(), part.record(&url)["body"].as_str()), (Some(206), Some("first")));
}

#[test]
fn only_what_has_changed_is_sent_again() {
    let changed = Arc::new(AtomicBool::new(false));
    let now = changed.clone();
    let server = Server::start(move |asked, stream| {
        let (tag, body) = if now.load(Ordering::SeqCst) { ("\"two\"", "second") } else { ("\"one\"", "first") };
        if asked.header("if-none-match") == Some(tag) {
            // It says nothing more, and must not send a body.
            stream.write_all(b"HTTP/1.1 304 Not Modified\r\n\r\n")?;
        } else {
            respond(stream, "200 OK", &[&format!("ETag: {tag}"), "Last-Modified: yesterday"], body.as_bytes())?;
        }
        Ok(Then::Keep)
    });
    let (url, other) = (server.url("/page"), server.url("/new"));
    let directory = tempfile::tempdir().unwrap();
    let records = directory.path().join("records");
    std::fs::write(&records, good([&url]).stdout).unwrap();

    let same = good(["--if-changed", in_text(&records), &url, &other]);
    let record = same.record(&url);
    assert_eq!((record["status"].as_u64(), record["bytes"].as_u64()), (Some(304), Some(0)));
    assert_eq!(record["final_url"], record["url"]);
    assert_eq!((record["etag"].as_str(), record["last_modified"].as_str()), (Some("\"one\""), Some("yesterday")));
    assert_eq!((record.get("error"), record.get("sha256")), (None, None));
    assert_eq!(same.record(&other)["status"], 200);
    let asked = server.asked();
    let again = asked.iter().skip(1).find(|asked| asked.path == "/page").unwrap();
    assert_eq!(again.header("if-modified-since"), Some("yesterday"));

    // The records of that run serve as well as those of the first.
    std::fs::write(&records, same.stdout).unwrap();
    assert_eq!(good(["--if-changed", in_text(&records), &url]).record(&url)["status"], 304);
    changed.store(true, Ordering::SeqCst);
    let record = good(["--if-changed", in_text(&records), "--body", "text", &url]).record(&url);
    assert_eq!((record["status"].as_u64(), record["body"].as_str()), (Some(200), Some("second")));
}

fn encoded(encoding: &str) -> Vec<u8> {
    let body = b"the same in all encodings";
    match encoding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        // A block that is not compressed (RFC 7932, 9.2).
        "br" => {
            let header = ((body.len() as u32 - 1) << 4) | 1 << 20;
            [&header.to_le_bytes()[..3], body, &[3]].concat()
        }
        // A frame of a single segment with one raw block (RFC 8878, 3.1.1).
        "zstd" => {
            let block = (body.len() as u32) << 3 | 1;
            [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, body.len() as u8], &block.to_le_bytes()[..3], body].concat()
        }
        _ => body.to_vec(),
    }
}

#[test]
fn bodies_are_decompressed() {
    let server = Server::start(|asked, stream| {
        let encoding = asked.path.trim_start_matches('/');
        respond(stream, "200 OK", &[&format!("Content-Encoding: {encoding}")], &encoded(encoding))?;
        Ok(Then::Keep)
    });
    for encoding in ["identity", "gzip", "br", "zstd"] {
        let url = server.url(&format!("/{encoding}"));
        let record = good(["--body", "text", &url]).record(&url);
        assert_eq!(record["body"], "the same in all encodings", "{encoding}");
        assert_eq!(record["bytes"], 25, "{encoding}");
    }
    let url = server.url("/zstd");
    let record = good(["--no-compressed", &url]).record(&url);
    assert_eq!(record["bytes"].as_u64(), Some(encoded("zstd").len() as u64));
    assert_eq!(server.asked().last().unwrap().header("accept-encoding"), None);
}

#[test]
fn codings_have_other_names() {
    let server = Server::start(|asked, stream| {
        let (name, coding) = asked.path[1..].split_once('/').unwrap();
        let mut body = encoded(coding);
        if asked.header("x-cut").is_some() {
            body.truncate(body.len() - 9);
        }
        respond(stream, "200 OK", &[&format!("Content-Encoding: {}", name.replace('+', ", "))], &body)?;
        Ok(Then::Keep)
    });
    for path in [
        "/GZIP/gzip",
        "/x-gzip/gzip",
        "/X-GZip/gzip",
        "/identity+GZIP/gzip",
        "/Zstd/zstd",
        "/Identity/none",
        "/BR/br",
        "/identity+br/br",
        "/none/none",
        "/utf-8/none",
    ] {
        let url = server.url(path);
        assert_eq!(good(["--body", "text", &url]).record(&url)["body"], "the same in all encodings", "{path}");
    }
    let url = server.url("/GZIP/gzip");
    assert_eq!(run(["--quiet", "--max-filesize", "24", &url]).kind(&url), "too-large");
    // It is longer when it is compressed.
    for (url, coding) in [(&url, "gzip"), (&server.url("/zstd/zstd"), "zstd")] {
        assert!(encoded(coding).len() > 25);
        assert_eq!(good(["--max-filesize", "25", url]).record(url)["bytes"], 25);
    }
    assert_eq!(run(["--quiet", "--retry", "0", "-H", "X-Cut: 1", &url]).kind(&url), "truncated");
    let url = server.url("/x-gzip/none");
    assert_eq!(run(["--quiet", &url]).kind(&url), "protocol");
    for (path, name) in [("/deflate/none", "deflate"), ("/br+GZIP/gzip", "br, GZIP")] {
        let url = server.url(path);
        let run = run(["--quiet", &url]);
        assert_eq!(run.kind(&url), "protocol", "{path}");
        let message = run.message(&url);
        assert!(message.contains(&format!(" {name},")) && message.contains("--no-compressed"), "{message}");
        for flags in [&["--no-compressed"][..], &["-H", "Accept-Encoding: deflate"]] {
            let bytes = good(flags.iter().copied().chain([url.as_str()])).record(&url)["bytes"].as_u64();
            assert_eq!(bytes, Some(encoded(path.rsplit('/').next().unwrap()).len() as u64), "{path}");
        }
    }
}

/// The end of a body may come after that of what is compressed in it.
#[test]
fn connections_are_used_again_after_compressed_bodies() {
    let server = Server::start(|asked, stream| {
        let coding = asked.path[1..].split('/').next().unwrap();
        let body = encoded(coding);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        write!(stream, "{:x}\r\n", body.len())?;
        stream.write_all(&body)?;
        stream.write_all(b"\r\n")?;
        stream.flush()?;
        // The client has read this much by then; if it hasn't, the test is easier and not wrong.
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(b"0\r\n\r\n")?;
        Ok(Then::Keep)
    });
    for coding in ["gzip", "br", "zstd"] {
        let before = server.connections();
        good(["-c", "1", &server.url(&format!("/{coding}/{{1..20}}"))]);
        let connections = server.connections() - before;
        assert!(connections < 10, "{coding}: {connections}");
    }
}

#[test]
fn a_body_is_cut_though_what_is_compressed_in_it_is_whole() {
    let server = Server::start(|asked, stream| {
        let (coding, tail) = asked.path[1..].split_once('/').unwrap();
        let body = [encoded(coding), tail.as_bytes().to_vec()].concat();
        let length = body.len() + 100;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {length}\r\n\r\n")?;
        stream.write_all(&body)?;
        Ok(Then::Close)
    });
    for path in ["/gzip/", "/gzip/tail", "/br/", "/br/tail", "/zstd/"] {
        let url = server.url(path);
        assert_eq!(run(["--quiet", "--retry", "0", &url]).kind(&url), "truncated", "{path}");
    }
}

/// Nobody keeps it, and its size is told all the same.
#[test]
fn the_page_of_an_error_is_counted_as_it_would_be_kept() {
    let server = Server::start(|asked, stream| {
        let coding = &asked.path[1..];
        respond(stream, "404 Not Found", &[&format!("Content-Encoding: {coding}")], &encoded(coding))?;
        Ok(Then::Keep)
    });
    for coding in ["identity", "gzip", "br", "zstd"] {
        let url = server.url(&format!("/{coding}"));
        assert_eq!(run(["--quiet", &url]).record(&url)["bytes"], 25, "{coding}");
    }
    assert_eq!(server.connections(), 4, "one a run");
}

#[test]
fn nothing_needs_no_decompression() {
    let server = Server::start(|asked, stream| {
        let (status, encoding) = asked.path[1..].split_once('/').unwrap();
        respond(stream, &format!("{status} All Well"), &[&format!("Content-Encoding: {encoding}")], b"")?;
        Ok(Then::Keep)
    });
    for path in
        ["/200/gzip", "/200/br", "/200/zstd", "/204/gzip", "/204/br", "/204/zstd", "/200/x-gzip", "/204/deflate"]
    {
        let url = server.url(path);
        assert_eq!(good([&url]).record(&url)["bytes"], 0, "{path}");
    }
}

#[test]
fn methods_headers_and_bodies_are_sent() {
    let server = Server::echo();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    let long: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &long).unwrap();
    let rows = [
        serde_json::json!({"url": server.url("/put"), "method": "PUT", "body": "text", "headers": {"X-Own": "yes"}}),
        serde_json::json!({"url": server.url("/base64"), "method": "POST", "body": {"base64": "AAH/"}}),
        serde_json::json!({"url": server.url("/file"), "method": "POST", "body": {"file": file}}),
    ];
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let list = directory.path().join("rows.jsonl");
    std::fs::write(&list, rows).unwrap();
    let run = good(["--from", in_text(&list)]);
    assert_eq!(run.records().len(), 3);
    let asked = server.asked();
    let find = |path: &str| asked.iter().find(|asked| asked.path == path).unwrap();
    assert_eq!((find("/put").method.as_str(), find("/put").body.as_slice()), ("PUT", &b"text"[..]));
    assert_eq!(find("/put").header("x-own"), Some("yes"));
    assert_eq!(find("/base64").body, [0, 1, 255]);
    assert_eq!(find("/file").header("content-length"), Some("4000000"));
    assert!(find("/file").body == long);
}

#[test]
fn empty_bodies_have_their_length() {
    let server = Server::echo();
    let url = server.url("/");
    let sent = |arguments: &[&str], row: &str| {
        let run = run_with(program().arg("--quiet").args(arguments), row.as_bytes());
        assert_eq!(run.code, Some(0), "{run:?}");
        let asked = server.asked().pop().unwrap();
        let lengths = asked.headers.iter().filter(|(name, _)| name == "content-length");
        (asked.method.clone(), lengths.map(|(_, value)| value.clone()).collect::<Vec<_>>().join(","))
    };
    for method in ["POST", "PUT", "PATCH"] {
        assert_eq!(sent(&["-X", method, &url], ""), (method.into(), "0".into()));
    }
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        assert_eq!(sent(&["-X", method, &url], ""), (method.into(), String::new()));
    }
    assert_eq!(sent(&["-d", "", &url], ""), ("POST".into(), "0".into()));
    assert_eq!(sent(&["-X", "DELETE", "-d", "", &url], ""), ("DELETE".into(), "0".into()));
    let row = serde_json::json!({"url": url, "method": "QUERY", "body": ""}).to_string();
    assert_eq!(sent(&["--from", "-", "--format", "jsonl"], &row), ("QUERY".into(), "0".into()));
}

#[test]
fn a_body_that_is_no_file_is_bad_input() {
    let server = Server::echo();
    for file in ["/nonexistent/body", "/"] {
        let row =
            format!("{}\n", serde_json::json!({"url": server.url("/"), "method": "POST", "body": {"file": file}}));
        let run = run_with(program().args(["--quiet", "--from", "-", "--format", "jsonl"]), row.as_bytes());
        assert_eq!(run.kind(&server.url("/")), "bad-input", "{run:?}");
        assert!(run.message(&server.url("/")).contains(file), "{run:?}");
        assert_eq!(server.asked().len(), 0);
    }
}

#[test]
fn heads_are_asked_for_without_bodies() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\nETag: \"x\"\r\n\r\n")?;
        Ok(Then::Keep)
    });
    let url = server.url("/");
    let record = good(["-I", &url]).record(&url);
    assert_eq!((record["status"].as_u64(), record["bytes"].as_u64()), (Some(200), Some(0)));
    assert_eq!((record["method"].as_str(), record["etag"].as_str()), (Some("HEAD"), Some("\"x\"")));
    assert_eq!(record["final_url"], url);
}

#[test]
fn redirects_change_methods_as_they_should() {
    let server = Server::start(|asked, stream| {
        match asked.path.strip_prefix("/to/") {
            Some(status) => respond(stream, &format!("{status} Over There"), &["Location: /end?a b"], b"gone")?,
            None => ok(stream, asked.method.as_bytes())?,
        }
        Ok(Then::Keep)
    });
    for (status, method, body) in
        [("301", "GET", ""), ("303", "GET", ""), ("307", "POST", "data"), ("308", "POST", "data")]
    {
        let url = server.url(&format!("/to/{status}"));
        let record = good(["-d", "data", "--body", "text", &url]).record(&url);
        assert_eq!((record["body"].as_str(), record["status"].as_u64()), (Some(method), Some(200)), "{status}");
        assert_eq!(record["final_url"], server.url("/end?a%20b"));
        assert_eq!(server.asked().last().unwrap().body, body.as_bytes());
    }
    let url = server.url("/to/302");
    let record = good(["--no-location", &url]).record(&url);
    assert_eq!((record["status"].as_u64(), record["bytes"].as_u64()), (Some(302), Some(4)));
}

#[test]
fn a_failure_behind_a_redirect_says_where_it_was() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(move |_, stream| {
        respond(stream, "302 Found", &[&format!("Location: http://user:secret@{gone}/there")], b"")?;
        Ok(Then::Keep)
    });
    let url = server.url("/");
    let run = run(["--quiet", "--retry", "0", &url]);
    assert_eq!(run.kind(&url), "connect");
    assert_eq!(run.record(&url)["final_url"], format!("http://{gone}/there"));
}

#[test]
fn cookies_are_kept_if_wanted() {
    let server = Server::start(|_, stream| {
        respond(stream, "200 OK", &["Set-Cookie: seen=1", "Set-Cookie: \u{ff}", "Set-Cookie: b=2"], b"")?;
        Ok(Then::Keep)
    });
    let (first, second) = (server.url("/1"), server.url("/2"));
    good(["--concurrency", "1", &first, &second]);
    good(["--concurrency", "1", "--cookies", &first, &second]);
    // Who brings cookies wants no others.
    good(["--concurrency", "1", "--cookies", "--cookie", "own=1", &first, &second]);
    let sent: Vec<_> = server.asked().iter().map(|asked| asked.header("cookie").map(str::to_owned)).collect();
    let (kept, own) = (sent[3].as_deref().unwrap_or_default(), Some("own=1".to_owned()));
    assert!(["seen=1; b=2", "b=2; seen=1"].contains(&kept), "{kept}");
    assert_eq!((&sent[..3], &sent[4..]), (&[None, None, None][..], &[own.clone(), own][..]));
}

#[test]
fn a_proxy_is_asked_instead() {
    let proxy = Server::start(|asked, stream| {
        ok(stream, asked.path.as_bytes())?;
        Ok(Then::Keep)
    });
    let direct = Server::echo();
    let at = proxy.url("");
    let (far, near) = ("http://far.example/page", direct.url("/near"));
    let flags = ["--proxy", &at, "--proxy-user", "user:secret", "--noproxy", "127.0.0.1", "--body", "text"];
    let run = good(flags.into_iter().chain([far, &near]));
    assert_eq!(run.record(far)["body"], far);
    assert_eq!(run.record(&near)["body"], "/near");
    assert_eq!(proxy.asked()[0].header("proxy-authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    assert_eq!(direct.asked()[0].header("proxy-authorization"), None);
    assert!(!run.stdout.contains("secret"));

    let run = run_with(program().args(["--quiet", "--body", "text", far]).env("http_proxy", &at), b"");
    assert_eq!(run.record(far)["body"], far);
    let named = at.replace("127.0.0.1", "proxy.invalid");
    let resolve = format!("proxy.invalid:{}:127.0.0.1", proxy.address.port());
    let run = run_with(program().args(["--quiet", "--resolve", &resolve, far]).env("http_proxy", named), b"");
    assert_eq!(run.record(far)["status"], 200, "{run:?}");
    let run = run_with(program().args(["--quiet", "--noproxy", "*", &near]).env("http_proxy", &at), b"");
    assert_eq!(run.record(&near)["status"], 200);
    let run = run_with(program().args(["--quiet", "--proxy", "", &near]).env("http_proxy", &at), b"");
    assert_eq!(run.record(&near)["status"], 200);
    assert_eq!(proxy.asked().len(), 3);
}

/// A proxy of SOCKS 5 (RFC 1928) that answers what is asked through it itself, with where it should have connected to;
/// with a user and a password (RFC 1929) if it wants them.
fn socks(password: bool) -> Server {
    Server::raw(move |_, mut stream| {
        fn take<const N: usize>(stream: &mut TcpStream) -> std::io::Result<[u8; N]> {
            let mut bytes = [0; N];
            stream.read_exact(&mut bytes).map(|()| bytes)
        }
        fn text(stream: &mut TcpStream) -> std::io::Result<String> {
            let mut bytes = vec![0; take::<1>(stream)?[0].into()];
            stream.read_exact(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        assert_eq!(take::<1>(&mut stream)?, [5]);
        let methods = text(&mut stream)?;
        let method = if password { 2 } else { 0 };
        assert!(methods.as_bytes().contains(&method), "{methods:?}");
        stream.write_all(&[5, method])?;
        let mut who = String::new();
        if password {
            assert_eq!(take::<1>(&mut stream)?, [1]);
            who = format!("{}:{}@", text(&mut stream)?, text(&mut stream)?);
            stream.write_all(&[1, 0])?;
        }
        let [version, command, _, kind] = take::<4>(&mut stream)?;
        assert_eq!((version, command), (5, 1));
        let host = match kind {
            1 => Ipv4Addr::from(take::<4>(&mut stream)?).to_string(),
            _ => text(&mut stream)?,
        };
        let port = u16::from_be_bytes(take(&mut stream)?);
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(asked) = read_request(&mut reader)? {
            ok(&mut stream, format!("{who}{host}:{port}{}", asked.path).as_bytes())?;
        }
        Ok(())
    })
}

#[test]
fn a_socks_proxy_is_told_where_to_connect_to() {
    let url = "http://far.example/page";
    let resolve = ["--resolve", "far.example:80:192.0.2.7", "--quiet", "--body", "text"];
    for (scheme, place) in [("socks5h", "far.example:80/page"), ("socks5", "192.0.2.7:80/page")] {
        let proxy = format!("{scheme}://{}", socks(false).address);
        let run = good(resolve.into_iter().chain(["--proxy", &proxy, url]));
        assert_eq!(run.record(url)["body"], place, "{scheme}");
    }
    let proxy = format!("socks5h://{}", socks(true).address);
    let asked = good(["--body", "text", "--proxy", &proxy, "--proxy-user", "user:word", url]);
    assert_eq!(asked.record(url)["body"], "user:word@far.example:80/page");

    // Nobody is asked directly where the proxy is not there.
    let direct = Server::echo();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = format!("socks5://{gone}");
    let run = run(["--quiet", "--retry", "0", "--proxy", &proxy, &direct.url("/")]);
    assert_eq!((run.kind(&direct.url("/")).as_str(), direct.connections()), ("connect", 0), "{run:?}");
    assert!(run.message(&direct.url("/")).contains("--proxy"), "{run:?}");
    assert_eq!(run.record(&direct.url("/")).get("final_url"), None);
}

#[test]
fn names_may_be_resolved_by_hand() {
    let server = Server::echo();
    let port = server.address.port();
    let url = format!("http://somewhere.example:{port}/x");
    let resolve = format!("somewhere.example:{port}:127.0.0.1");
    assert_eq!(good(["--resolve", &resolve, &url]).record(&url)["status"], 200);
    let host = format!("somewhere.example:{port}");
    assert_eq!(server.asked()[0].header("host"), Some(host.as_str()));
}

#[test]
fn a_name_resolved_by_hand_is_so_on_one_port() {
    let server = Server::echo();
    let port = server.address.port();
    let other = Server::start(move |asked, stream| {
        let place = format!("Location: http://there.invalid:{port}{}", asked.path);
        respond(stream, "302 Found", &[&place], b"")?;
        Ok(Then::Keep)
    });
    let url = format!("http://there.invalid:{port}/x");
    let flags = |port: u16| ["--quiet".into(), "--retry=0".into(), format!("--resolve=there.invalid:{port}:127.0.0.1")];
    let wrong = run(flags(other.address.port()).iter().chain([&url]));
    assert_eq!((wrong.kind(&url).as_str(), server.connections()), ("dns", 0), "{wrong:?}");
    let first = format!("http://there.invalid:{}/x", other.address.port());
    let there = run(flags(other.address.port()).iter().chain([&first]));
    assert_eq!((there.kind(&first).as_str(), server.connections()), ("dns", 0), "{there:?}");
    let right = run(flags(port).iter().chain(&["--deny-private".to_owned(), url.clone()]));
    assert_eq!((right.code, server.connections()), (Some(0), 1), "{right:?}");
}

#[test]
fn passwords_are_sent_and_not_shown() {
    let server = Server::echo();
    let with = format!("http://us%65r:p%40ss@{}/x", server.address);
    let run = good([&with]);
    assert_eq!(run.record(&server.url("/x"))["final_url"], server.url("/x"));
    assert!(!run.stdout.contains("p%40ss") && !run.stderr.contains("p%40ss"), "{run:?}");
    assert_eq!(server.asked()[0].header("authorization"), Some("Basic dXNlcjpwQHNz"));
}

#[test]
fn the_closest_word_on_who_asks_counts() {
    let server = Server::echo();
    let url = server.url("/").replace("http://", "http://in:url@");
    let row = format!("{}\n", serde_json::json!({"url": url, "headers": {"Authorization": "of the row"}}));
    let flags = ["--quiet", "--concurrency", "1", "--user", "of:all", "--from", "-", "--format", "jsonl"];
    let plain = format!("{}\n", serde_json::json!({"url": server.url("/")}));
    let named = format!("{}\n", serde_json::json!({"url": url}));
    run_with(program().args(flags), [row, named, plain].concat().as_bytes());
    let sent: Vec<Vec<_>> = server
        .asked()
        .into_iter()
        .map(|asked| {
            asked.headers.into_iter().filter(|(name, _)| name == "authorization").map(|(_, value)| value).collect()
        })
        .collect();
    assert_eq!(sent, [["of the row"], ["Basic aW46dXJs"], ["Basic b2Y6YWxs"]]);
}

/// A server whose robots.txt is this answer; anything else is fine.
fn polite_server(status: &'static str, text: &'static str) -> Server {
    Server::start(move |asked, stream| {
        match asked.path.as_str() {
            "/robots.txt" => respond(stream, status, &[], text.as_bytes())?,
            _ => ok(stream, b"page")?,
        }
        Ok(Then::Keep)
    })
}

#[test]
fn robots_are_asked_once_and_obeyed() {
    let server = polite_server("200 OK", "User-agent: fetch\nDisallow: /private\nUser-agent: *\nDisallow: /\n");
    let urls = [server.url("/a"), server.url("/private/b"), server.url("/c")];
    let run = run(["--quiet", "--polite"].into_iter().chain(urls.iter().map(String::as_str)));
    assert_eq!(run.code, Some(1));
    assert_eq!(urls.each_ref().map(|url| run.kind(url)), ["", "robots", ""]);
    let asked: Vec<_> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(asked.iter().filter(|path| *path == "/robots.txt").count(), 1);
    assert_eq!(asked[0], "/robots.txt");
    assert!(!asked.contains(&"/private/b".to_owned()), "{asked:?}");
}

#[test]
fn without_robots_all_is_allowed_and_with_unreadable_ones_nothing() {
    for (status, kind) in [("404 Not Found", ""), ("403 Forbidden", ""), ("503 Service Unavailable", "robots")] {
        let server = polite_server(status, "Disallow: /");
        let url = server.url("/a");
        let run = run(["--quiet", "--polite", &url]);
        assert_eq!(run.kind(&url), kind, "{status}");
        assert_eq!(server.asked().iter().any(|asked| asked.path == "/a"), kind.is_empty(), "{status}");
    }
}

/// Though nobody has asked for that.
#[test]
fn robots_may_be_compressed() {
    let cases = [
        ("gzip", "200 OK", 0, ["", "robots"]),
        ("gzip", "200 OK", 9, ["robots", "robots"]), // cut
        ("deflate", "200 OK", 0, ["robots", "robots"]),
        ("deflate", "404 Not Found", 0, ["", ""]),
    ];
    for (name, status, cut, kinds) in cases {
        let server = Server::start(move |asked, stream| {
            if asked.path != "/robots.txt" {
                return ok(stream, b"page").map(|()| Then::Keep);
            }
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(b"User-agent: *\nDisallow: /private\n")?;
            let text = encoder.finish()?;
            respond(stream, status, &[&format!("Content-Encoding: {name}")], &text[..text.len() - cut])?;
            Ok(Then::Keep)
        });
        let urls = [server.url("/a"), server.url("/private")];
        let run = run(["--quiet", "--polite", &urls[0], &urls[1]]);
        assert_eq!(urls.each_ref().map(|url| run.kind(url)), kinds, "{name} {status} {cut}");
    }
}

#[test]
fn robots_hold_for_where_redirects_lead() {
    let target = polite_server("200 OK", "User-agent: *\nDisallow: /private\n");
    let place = target.url("/private/page");
    let server = Server::start(move |asked, stream| {
        match asked.path.as_str() {
            "/robots.txt" => respond(stream, "404 Not Found", &[], b"")?,
            _ => respond(stream, "302 Found", &[&format!("Location: {place}")], b"")?,
        }
        Ok(Then::Keep)
    });
    let url = server.url("/");
    assert_eq!(run(["--quiet", "--polite", &url]).kind(&url), "robots");
    assert_eq!(target.asked().len(), 1);
}

#[test]
fn http2_without_asking() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = Server::raw(move |_, stream| {
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            serve_http2(stream, |_| _ = count.fetch_add(1, Ordering::SeqCst)).await
        })
    });
    let urls: Vec<_> = (0..20).map(|number| server.url(&format!("/{number}"))).collect();
    let run = good(["--http2-prior-knowledge", "--body", "text"].into_iter().chain(urls.iter().map(String::as_str)));
    for url in &urls {
        assert_eq!(run.record(url)["body"], "HTTP/2");
    }
    assert_eq!((asked.load(Ordering::SeqCst), server.connections()), (20, 1));
}

#[test]
fn a_server_without_http2_says_so() {
    let server = Server::raw(|_, mut stream: TcpStream| {
        let _ = read_request(&mut BufReader::new(stream.try_clone()?));
        respond(&mut stream, "400 Bad Request", &[], b"")
    });
    let url = server.url("/");
    let run = run(["--quiet", "--retry", "0", "--http2-prior-knowledge", &url]);
    assert!(["protocol", "connection"].contains(&run.kind(&url).as_str()), "{run:?}");
}
