//! Servers that are broken or mean it: each gets the right kind of error in its record, the URL beside it succeeds, and
//! memory stays bounded.

mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use self::common::{Asked, Run, Server, Then, ok, reset, respond, run};

/// In KiB. Much less is normal; an unbounded body or head would be far beyond.
const MEMORY: u64 = 64 * 1024;

/// Fetches a bad URL beside good ones, before and after it; all but the bad one must succeed.
fn beside_good(bad: &str, flags: &[&str]) -> Run {
    let good = Server::echo();
    let (before, after) = (good.url("/before"), good.url("/after"));
    let urls = [before.as_str(), bad, after.as_str()];
    let run = run(["--quiet", "--retry", "0", "--concurrency", "2"].iter().chain(flags).chain(&urls));
    assert_eq!(run.records().len(), 3, "{run:?}");
    for url in [&before, &after] {
        assert_eq!(run.record(url)["status"], 200, "{run:?}");
        assert_eq!(run.kind(url), "", "{run:?}");
    }
    assert!(run.peak < MEMORY, "{} KiB", run.peak);
    run
}

/// The kind of error of a URL that fails.
fn kind_of(url: &str, flags: &[&str]) -> String {
    let run = beside_good(url, flags);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_ne!(run.message(url), "", "{run:?}");
    run.kind(url)
}

/// The kind of error when this is the answer, after which the connection is closed.
fn kind_of_answer(answer: &[u8], flags: &[&str]) -> String {
    let answer = answer.to_vec();
    let server = Server::start(move |_, stream| {
        stream.write_all(&answer)?;
        Ok(Then::Close)
    });
    kind_of(&server.url("/"), flags)
}

/// Writes the same again and again until the client has had enough.
fn forever(stream: &mut TcpStream, piece: &[u8], pause: Duration) -> io::Result<Then> {
    loop {
        stream.write_all(piece)?;
        stream.flush()?;
        thread::sleep(pause);
    }
}

#[test]
fn a_reset_where_the_connection_was_just_accepted() {
    let server = Server::raw(|_, stream| reset(&stream));
    let kind = kind_of(&server.url("/"), &[]);
    assert!(["connect", "connection"].contains(&kind.as_str()), "{kind}");
}

#[test]
fn a_reset_after_the_request() {
    let server = Server::start(|_, _| Ok(Then::Reset));
    assert_eq!(kind_of(&server.url("/"), &[]), "connection");
}

#[test]
fn a_reset_in_the_head() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le")?;
        Ok(Then::Reset)
    });
    assert_eq!(kind_of(&server.url("/"), &[]), "connection");
}

#[test]
fn an_end_in_the_head() {
    assert_eq!(kind_of_answer(b"HTTP/1.1 200 OK\r\nContent-Le", &[]), "connection");
    assert_eq!(kind_of_answer(b"", &[]), "connection");
}

#[test]
fn a_reset_in_the_body() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome of it")?;
        Ok(Then::Reset)
    });
    let run = beside_good(&server.url("/"), &[]);
    assert_eq!(run.kind(&server.url("/")), "truncated", "{run:?}");
    assert_eq!(run.record(&server.url("/"))["status"], 200);
}

#[test]
fn nobody_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(kind_of(&format!("http://127.0.0.1:{port}/"), &[]), "connect");
}

#[test]
fn no_such_host() {
    assert_eq!(kind_of("http://no-such-host.invalid/", &[]), "dns");
}

#[test]
fn no_connection() {
    // A backlog that is full: the next connection is neither accepted nor refused.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let short = Duration::from_millis(200);
    let full: Vec<_> = (0..4).map_while(|_| TcpStream::connect_timeout(&address, short).ok()).collect();
    assert!(full.len() < 4, "the backlog takes all");
    assert_eq!(kind_of(&format!("http://{address}/"), &["--connect-timeout", "0.3"]), "connect-timeout");
}

#[test]
fn no_head() {
    let server = Server::start(|_, stream| {
        let _ = stream.read(&mut [0]); // until the client gives up
        Ok(Then::Close)
    });
    assert_eq!(kind_of(&server.url("/"), &["--first-byte-timeout", "0.3"]), "first-byte-timeout");
    assert_eq!(kind_of(&server.url("/"), &["--max-time", "0.3"]), "timeout");
}

#[test]
fn a_head_that_drips() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX-Drip: ")?;
        forever(stream, b"x", Duration::from_millis(20))
    });
    assert_eq!(kind_of(&server.url("/"), &["--first-byte-timeout", "0.5"]), "first-byte-timeout");
}

#[test]
fn a_head_that_never_ends() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        forever(stream, &b"X-More: and more\r\n".repeat(1000), Duration::ZERO)
    });
    assert_eq!(kind_of(&server.url("/"), &[]), "protocol");
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX-Long: ")?;
        forever(stream, &[b'x'; 10_000], Duration::ZERO)
    });
    assert_eq!(kind_of(&server.url("/"), &[]), "protocol");
}

#[test]
fn a_hundred_thousand_headers() {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_vec();
    for number in 0..100_000 {
        write!(answer, "X-{number}: x\r\n").unwrap();
    }
    answer.extend(b"\r\n");
    assert_eq!(kind_of_answer(&answer, &[]), "protocol");
}

#[test]
fn no_http_at_all() {
    assert_eq!(kind_of_answer(b"220 mail.example ESMTP ready\r\n", &[]), "protocol");
    assert_eq!(kind_of_answer(&[0, 255, 7, 0, 13, 10, 13, 10], &[]), "protocol");
}

#[test]
fn a_body_that_drips() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
        forever(stream, b"x", Duration::from_millis(20))
    });
    // Each drip starts the idle time anew; all together take too long.
    let run = beside_good(&server.url("/"), &["--idle-timeout", "20", "--max-time", "1"]);
    assert_eq!(run.kind(&server.url("/")), "timeout", "{run:?}");
    assert!(run.record(&server.url("/"))["bytes"].as_u64().unwrap() > 1, "{run:?}");
}

#[test]
fn a_body_that_stalls() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome")?;
        let _ = stream.read(&mut [0]);
        Ok(Then::Close)
    });
    let run = beside_good(&server.url("/"), &["--idle-timeout", "0.3"]);
    assert_eq!(run.kind(&server.url("/")), "idle-timeout", "{run:?}");
    assert_eq!(run.record(&server.url("/"))["bytes"], 4);
}

#[test]
fn a_body_that_never_ends() {
    for head in ["Transfer-Encoding: chunked", "Connection: close"] {
        let server = Server::start(move |_, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n")?;
            let piece = [b"2710\r\n".as_slice(), &[b'x'; 10_000], b"\r\n"].concat();
            forever(stream, if head.starts_with('T') { &piece } else { &[b'x'; 10_000] }, Duration::ZERO)
        });
        assert_eq!(kind_of(&server.url("/"), &["--max-filesize", "5M"]), "too-large");
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")?;
        forever(stream, b"x", Duration::ZERO)
    });
    let run = beside_good(&server.url("/"), &["--max-filesize", "1000"]);
    assert_eq!(run.kind(&server.url("/")), "too-large");
    assert_eq!(run.record(&server.url("/"))["bytes"], 0);
}

#[test]
fn a_body_shorter_than_it_said() {
    assert_eq!(kind_of_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", &[]), "truncated");
}

#[test]
fn a_body_longer_than_it_said_does_not_run_into_the_next() {
    // What comes later can't be told from an answer to the next request by anybody.
    let server = Server::start(|asked, stream| {
        let forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
        let all = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{}{forged}", asked.path);
        stream.write_all(all.as_bytes())?;
        Ok(Then::Keep)
    });
    let urls: Vec<_> = (0..20).map(|number| server.url(&format!("/{number:03}"))).collect();
    let run =
        run(["--quiet", "--concurrency", "1", "--body", "text"].into_iter().chain(urls.iter().map(String::as_str)));
    for url in &urls {
        assert!(url.ends_with(run.record(url)["body"].as_str().unwrap()), "{run:?}");
    }
}

#[test]
fn chunks_that_are_none() {
    let answer = |chunks: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes();
    assert_eq!(kind_of_answer(&answer("zz\r\nabc\r\n0\r\n\r\n"), &[]), "protocol");
    assert_eq!(kind_of_answer(&answer("3\r\nabcdef\r\n0\r\n\r\n"), &[]), "protocol");
    assert_eq!(kind_of_answer(&answer("fffffffffffffffff\r\nabc"), &[]), "protocol");
    assert_eq!(kind_of_answer(&answer("3\r\nabc\r\n"), &[]), "truncated");
    assert_eq!(kind_of_answer(&answer("ff\r\nabc"), &[]), "truncated");
}

fn gzip(body: impl Read) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::copy(&mut { body }, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn gzipped(body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend(body);
    answer
}

#[test]
fn a_bomb_in_gzip() {
    let bomb = gzip(io::repeat(0).take(80 << 20));
    assert!(bomb.len() < 1 << 20);
    assert_eq!(kind_of_answer(&gzipped(&bomb), &["--max-filesize", "5M"]), "too-large");
}

/// What comes behind a body, or is compressed to nothing, may never end.
#[test]
fn gzip_that_never_ends() {
    let behind: fn(&mut TcpStream) -> io::Result<Then> = |stream| {
        stream.write_all(&gzip(&b"all is well"[..]))?;
        forever(stream, &[0; 1024], Duration::ZERO)
    };
    let empty = |stream: &mut TcpStream| forever(stream, &gzip(&b""[..]).repeat(100), Duration::ZERO);
    for (answer, kind) in [(behind, ""), (empty, "too-large")] {
        let server = Server::start(move |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")?;
            answer(stream)
        });
        let url = server.url("/");
        let run = beside_good(&url, &["--max-filesize", "1000"]);
        assert_eq!(run.kind(&url), kind, "{run:?}");
    }
}

#[test]
fn a_bomb_in_zstd() {
    // A window of 128 MiB, and a block of 128 KiB in four bytes, again and again.
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nConnection: close\r\n\r\n".to_vec();
    answer.extend([0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3]);
    for _ in 0..10_000 {
        answer.extend([0x02, 0, 0x10, b'x']);
    }
    assert_eq!(kind_of_answer(&answer, &[]), "protocol");
    // The same with a window as it should be.
    let window = answer.windows(4).position(|bytes| bytes == [0x28, 0xb5, 0x2f, 0xfd]).unwrap() + 5;
    answer[window] = 13 << 3;
    assert_eq!(kind_of_answer(&answer, &["--max-filesize", "5M"]), "too-large");
}

#[test]
fn gzip_that_is_none() {
    let whole = gzip(&b"all is well".repeat(100)[..]);
    let mut wrong = whole.clone();
    let last = wrong.len() - 6;
    wrong[last] ^= 0xff; // the check sum
    assert_eq!(kind_of_answer(&gzipped(&wrong), &[]), "protocol");
    assert_eq!(kind_of_answer(&gzipped(b"this is no gzip at all"), &[]), "protocol");
    assert_eq!(kind_of_answer(&gzipped(&whole[..whole.len() / 2]), &[]), "truncated");
}

#[test]
fn redirects_in_circles() {
    let server = Server::start(|asked, stream| {
        let next = if asked.path == "/a" { "Location: /b" } else { "Location: /a" };
        respond(stream, "302 Found", &[next], &[b'x'; 60_000])?;
        Ok(Then::Keep)
    });
    assert_eq!(kind_of(&server.url("/a"), &[]), "redirect");
    assert_eq!(server.asked().len(), 11);
    // A body that nobody wants doesn't cost its connection, though the next request may come before it is free again.
    assert!(server.connections() < 6, "{}", server.connections());
}

#[test]
fn too_many_redirects() {
    let server = Server::start(|asked, stream| {
        respond(stream, "302 Found", &[&format!("Location: {}x", asked.path)], b"")?;
        Ok(Then::Keep)
    });
    let run = beside_good(&server.url("/"), &["--max-redirs", "3"]);
    assert_eq!(run.kind(&server.url("/")), "redirect");
    assert!(run.message(&server.url("/")).contains("--max-redirs"), "{run:?}");
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn redirects_to_what_is_no_web_page() {
    for place in ["file:///etc/passwd", "ftp://127.0.0.1/", "http://", "http://[/"] {
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(kind_of_answer(answer.as_bytes(), &[]), "redirect", "{place}");
    }
}

#[test]
fn a_redirect_to_a_private_address() {
    let inside = Server::echo();
    let target = inside.url("/secret");
    let outside = Server::start(move |asked, stream| {
        match asked.path.as_str() {
            "/good" => ok(stream, b"good")?,
            "/name" => respond(stream, "302 Found", &["Location: http://localhost/"], b"")?,
            _ => respond(stream, "302 Found", &[&format!("Location: {target}")], b"")?,
        }
        Ok(Then::Keep)
    });
    let port = outside.address.port();
    let url = |path| format!("http://public.example:{port}{path}");
    let resolve = format!("public.example:{port}:127.0.0.1"); // given by the user, so it is meant
    let urls = [url("/bad"), url("/name"), url("/good")];
    let run =
        run(["--quiet", "--deny-private", "--resolve", &resolve].into_iter().chain(urls.iter().map(String::as_str)));
    assert_eq!(run.kind(&urls[0]), "denied", "{run:?}");
    assert_eq!(run.kind(&urls[1]), "denied", "{run:?}");
    assert_eq!(run.record(&urls[2])["status"], 200, "{run:?}");
    assert_eq!(inside.connections(), 0);
}

#[test]
fn private_addresses_in_disguise() {
    let inside = Server::echo();
    let port = inside.address.port();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "0",
    ];
    let urls: Vec<_> = hosts.iter().map(|host| format!("http://{host}:{port}/")).collect();
    let run =
        run(["--quiet", "--retry", "0", "--deny-private", "-g"].into_iter().chain(urls.iter().map(String::as_str)));
    let records = run.records();
    assert_eq!(records.len(), hosts.len());
    for record in records {
        assert_eq!(record["error"]["kind"], "denied", "{record}");
        assert!(record["error"]["message"].as_str().unwrap().contains("--deny-private"), "{record}");
    }
    assert_eq!(inside.connections(), 0);
}

/// Answers the first request with 429 and this, the others with 200; says how the run went and how long it took.
fn throttled(retry_after: String) -> (Run, String, Duration) {
    let server = Server::start(move |asked, stream| {
        if asked.path == "/throttled" && asked.connection == 0 && !asked.headers.is_empty() {
            respond(stream, "429 Too Many Requests", &[&format!("Retry-After: {retry_after}")], b"later")?;
            return Ok(Then::Close);
        }
        ok(stream, b"")?;
        Ok(Then::Keep)
    });
    let (url, start) = (server.url("/throttled"), Instant::now());
    let run = run(["--quiet", "--retry", "2", "--retry-delay", "10ms", "--retry-max-delay", "5s", &url]);
    (run, url, start.elapsed())
}

#[test]
fn retry_after_in_seconds() {
    let (run, url, took) = throttled("1".into());
    assert_eq!((run.record(&url)["status"].as_u64(), run.record(&url)["attempts"].as_u64()), (Some(200), Some(2)));
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn retry_after_as_a_date() {
    let date = SystemTime::now() + Duration::from_secs(3);
    let (run, url, took) = throttled(httpdate::fmt_http_date(date));
    assert_eq!((run.record(&url)["status"].as_u64(), run.record(&url)["attempts"].as_u64()), (Some(200), Some(2)));
    // A date has whole seconds, and starting the program takes a while.
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn retry_after_that_makes_no_sense() {
    let (run, url, took) = throttled("a while".into());
    assert_eq!((run.record(&url)["status"].as_u64(), run.record(&url)["attempts"].as_u64()), (Some(200), Some(2)));
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn retry_after_a_year() {
    let (run, url, took) = throttled("31536000".into());
    assert_eq!((run.kind(&url).as_str(), run.record(&url)["attempts"].as_u64()), ("status", Some(1)));
    assert_eq!(run.message(&url), "429 Too Many Requests");
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// A server that speaks TLS, with a certificate that nobody has signed: it, as PEM.
fn secure_server() -> (Server, String) {
    let certified = generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certified.cert.der().clone()], key).unwrap());
    let server = Server::raw(move |_, stream| {
        let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        let mut stream = io::BufReader::new(StreamOwned::new(connection, stream));
        while let Some(asked) = common::read_request(&mut stream)? {
            let body = asked.path;
            write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        }
        Ok(())
    });
    (server, certified.cert.pem())
}

#[test]
fn bad_tls() {
    let plain = Server::raw(|_, mut stream| {
        ok(&mut stream, b"")?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    });
    assert_eq!(kind_of(&format!("https://{}/", plain.address), &[]), "tls");
    let deaf = Server::raw(|_, _| Ok(()));
    assert_eq!(kind_of(&format!("https://{}/", deaf.address), &[]), "connect");
}

#[test]
fn a_certificate_nobody_knows() {
    let (server, pem) = secure_server();
    let url = format!("https://{}/", server.address);
    let run = beside_good(&url, &["--retry", "0"]);
    let (kind, message) = (run.kind(&url), run.message(&url));
    assert_eq!(kind, "tls");
    assert!(message.contains("--cacert FILE") && message.contains("--insecure"), "{message}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, pem).unwrap();
    let run = beside_good(&url, &["--cacert", file.to_str().unwrap()]);
    assert_eq!(run.record(&url)["status"], 200, "{run:?}");
    assert!(!run.stderr.contains("--insecure"));

    let run = beside_good(&url, &["--insecure"]);
    assert_eq!(run.record(&url)["status"], 200, "{run:?}");
    assert!(run.stderr.contains("--insecure"), "{run:?}");
}

#[test]
fn a_certificate_file_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    for content in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&file, content).unwrap();
        let run = run(["--cacert", file.to_str().unwrap(), "http://127.0.0.1:9/"]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains("--cacert"), "{run:?}");
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn headers_that_are_not_utf8() {
    let server = Server::start(|_, stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/\xffplain\r\nETag: \"\xe9t\xe9\"\r\nX-Any: \x80\xfe\r\n";
        stream.write_all(head)?;
        stream.write_all(b"Content-Length: 2\r\n\r\nok")?;
        Ok(Then::Close)
    });
    let run = beside_good(&server.url("/"), &[]);
    let record = run.record(&server.url("/"));
    assert_eq!((record["status"].as_u64(), record["bytes"].as_u64()), (Some(200), Some(2)), "{run:?}");
    assert_eq!(record["content_type"], "text/\u{fffd}plain");
    assert_eq!(record["etag"], "\"\u{fffd}t\u{fffd}\"");
}

#[test]
fn a_name_that_the_server_chose() {
    let server = Server::start(|_, stream| {
        let names = ["Content-Disposition: attachment; filename=\"../../etc/passwd\""];
        respond(stream, "200 OK", &names, b"root::0:0")?;
        Ok(Then::Keep)
    });
    let directory = tempfile::tempdir().unwrap();
    let bodies = directory.path().join("a/b/c");
    let run = beside_good(&server.url("/file"), &["-o", bodies.to_str().unwrap()]);
    let file = run.record(&server.url("/file"))["file"].as_str().unwrap().to_owned();
    assert!(!file.contains("passwd"), "{file}");
    assert!(!directory.path().join("a/etc").exists() && !directory.path().join("etc").exists());
}

#[test]
fn connections_that_are_closed_without_a_word() {
    // As if each response could be followed by another, but none can.
    let server = Server::start(|_, stream| {
        ok(stream, b"last words")?;
        Ok(Then::Reset)
    });
    let quick = Server::start(|_, stream| {
        ok(stream, b"last words")?;
        Ok(Then::Close)
    });
    let urls: Vec<_> =
        (0..50).flat_map(|number| [server.url(&format!("/{number}")), quick.url(&format!("/{number}"))]).collect();
    let flags = ["--quiet", "--concurrency", "2", "--retry", "5", "--retry-delay", "10ms"];
    let run = run(flags.into_iter().chain(urls.iter().map(String::as_str)));
    assert_eq!(run.code, Some(0), "{}", run.stdout);
    for url in &urls {
        assert_eq!(run.record(url)["bytes"], 10);
    }
}

/// A server that sends everybody on to another host, which sends them on within itself: what each was asked.
fn sent_on(flags: &[&str], user: &str) -> (Vec<Asked>, Vec<Asked>) {
    let other = Server::start(|asked, stream| {
        match asked.path.as_str() {
            "/first" => respond(stream, "302 Found", &["Location: /second"], b"")?,
            _ => ok(stream, b"")?,
        }
        Ok(Then::Keep)
    });
    let target = other.url("/first");
    let first = Server::start(move |asked, stream| {
        match asked.path.as_str() {
            "/here" => respond(stream, "302 Found", &["Location: /there"], b"")?,
            _ => respond(stream, "302 Found", &[&format!("Location: {target}")], b"")?,
        }
        Ok(Then::Keep)
    });
    let url = format!("http://{user}{}/here", first.address);
    let run = run(["--quiet", "--retry", "0", &url].iter().chain(flags));
    let record = &run.records()[0];
    assert_eq!(record["status"], 200, "{run:?}");
    assert_eq!(record["url"], first.url("/here"));
    assert_eq!(record["final_url"], other.url("/second"));
    assert!(!run.stdout.contains("secret") && !run.stderr.contains("secret"), "{run:?}");
    (first.asked(), other.asked())
}

#[test]
fn credentials_stay_with_their_host() {
    let directory = tempfile::tempdir().unwrap();
    let netrc = directory.path().join("netrc");
    std::fs::write(&netrc, "machine 127.0.0.1 login user password secret\n").unwrap();
    let basic = "Basic dXNlcjpzZWNyZXQ=";
    for (flags, user, header, value) in [
        (&["--user", "user:secret"][..], "", "authorization", basic),
        (&[], "user:secret@", "authorization", basic),
        (&["--netrc-file", netrc.to_str().unwrap()], "", "authorization", basic),
        (&["--oauth2-bearer", "secret"], "", "authorization", "Bearer secret"),
        (&["-H", "Authorization: secret"], "", "authorization", "secret"),
        (&["-b", "session=secret"], "", "cookie", "session=secret"),
    ] {
        let (own, others) = sent_on(flags, user);
        let sent: Vec<_> = own.iter().map(|asked| asked.header(header)).collect();
        assert_eq!(sent, [Some(value), Some(value)], "{flags:?}");
        assert_eq!(others.len(), 2, "{flags:?}");
        for asked in others {
            assert!(!format!("{asked:?}").contains(value), "{flags:?} {asked:?}");
        }
    }
}
