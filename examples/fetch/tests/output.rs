//! What comes out of a run: records, and bodies where they are wanted.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use self::common::{Server, Then, files, ok, program, respond, run_with};

/// No two URLs share a file, not even where case makes no difference, and nothing leads out of the directory.
#[test]
fn names_do_not_clash() {
    let server = Server::start(|asked, stream| {
        let header = "Content-Disposition: attachment; filename=\"../../etc/passwd\"";
        respond(stream, "200 OK", &[header], asked.path.as_bytes())?;
        Ok(Then::Keep)
    });
    let paths = [
        "/",
        "/a",
        "/A",
        "/a/",
        "/a/b",
        "/a/b/",
        "/a/B",
        "/a?b",
        "/a?B",
        "/a%2fb",
        "/a.body",
        "/index",
        "/index.body",
        "//",
        "//a",
        "/..%2f..%2fetc%2fpasswd",
        "/con",
        "/nul.txt",
        "/a.",
        "/a%20",
        "/a:b",
        "/-rf",
        "/.hidden",
        "/%00",
        "/é",
        "/a/b/../c",
        "/a\\d",
    ];
    let long = format!("/{}", "x".repeat(5_000));
    let deep = "/a".repeat(1_000);
    let urls: Vec<_> = paths.into_iter().chain([&*long, &*deep]).map(|path| server.url(path)).collect();
    for names in ["path", "hash", "id"] {
        let directory = tempfile::tempdir().unwrap();
        let bodies = directory.path().join("inside/bodies");
        let mut command = program();
        command.args(["--quiet", "--names", names, "--output-dir"]).arg(&bodies).args(&urls);
        let run = run_with(&mut command, b"");
        assert_eq!(run.code, Some(0), "{run:?}");
        let mut lower = BTreeSet::new();
        for record in run.records() {
            let file = record["file"].as_str().unwrap();
            let url: &str = record["url"].as_str().unwrap();
            let expected = &url[server.url("").len()..];
            assert_eq!(fs::read_to_string(bodies.join(file)).unwrap(), expected, "{names}: {file}");
            assert!(lower.insert(file.to_lowercase()), "{names}: {file} is there twice");
        }
        assert_eq!(lower.len(), urls.len());
        assert_eq!(files(directory.path()).len(), urls.len(), "nothing is anywhere else");
    }
}

#[test]
fn no_file_is_that_of_two_requests_with_one_id() {
    let server = Server::echo();
    let rows: String =
        ["/1", "/2", "/1"].map(|path| format!("{{\"url\":\"{}\",\"id\":\"a\"}}\n", server.url(path))).concat();
    let directory = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["--quiet", "--ordered", "--names", "id", "--format", "jsonl", "--from", "-", "--output-dir"]);
    let run = run_with(command.arg(directory.path()), rows.as_bytes());
    let records = run.records();
    assert_eq!((run.code, records.len(), files(directory.path()).len()), (Some(1), 3, 1));
    assert_eq!(records[1]["error"]["kind"], "bad-input");
    assert!(records[1]["error"]["message"].as_str().unwrap().contains("--names id"), "{}", records[1]);
    assert_eq!((&records[0]["file"], &records[2]["file"]), (&"a".into(), &"a".into()));
}

#[test]
fn bodies_of_errors_only_if_wanted() {
    let server = Server::start(|_, stream| {
        respond(stream, "404 Not Found", &[], b"no such thing")?;
        Ok(Then::Keep)
    });
    let url = server.url("/a");
    for (more, count) in [(&[][..], 0), (&["--keep-errors"][..], 1)] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = program();
        command.args(["--quiet", "--body", "text", "--output-dir"]).arg(directory.path()).args(more).arg(&url);
        let run = run_with(&mut command, b"");
        assert_eq!(run.code, Some(1));
        assert_eq!(files(directory.path()).len(), count);
        let record = run.record(&url);
        assert_eq!(record["body"].as_str(), (count == 1).then_some("no such thing"));
        assert_eq!((record["file"].is_string(), &record["bytes"]), (count == 1, &13.into()));
    }
}

#[test]
fn bodies_in_records() {
    let server = Server::start(|_, stream| {
        ok(stream, b"\xffA\n\0\"")?;
        Ok(Then::Keep)
    });
    let url = server.url("/");
    for (how, expected) in [("text", "\u{fffd}A\n\0\""), ("base64", "/0EKACI=")] {
        let run = run_with(program().args(["--quiet", "--body", how, &url]), b"");
        assert_eq!(run.record(&url)["body"], expected);
    }
}

/// The first row is answered when all others have been; with `--ordered` its record is still the first.
#[test]
fn in_order() {
    const ROWS: usize = 40;
    let others = Arc::new((Mutex::new(0), Condvar::new()));
    let server = Server::start(move |asked, stream| {
        let (count, changed) = &*others;
        if asked.path == "/1" {
            let enough = changed.wait_while(count.lock().unwrap(), |count| *count < ROWS - 1);
            *enough.unwrap() = 0;
        }
        ok(stream, b"")?;
        *count.lock().unwrap() += 1;
        changed.notify_all();
        Ok(Then::Keep)
    });
    let url = server.url(&format!("/{{1..{ROWS}}}"));
    for (more, first) in [(&[][..], false), (&["--ordered"][..], true)] {
        let run = run_with(program().args(["--quiet", &url]).args(more), b"");
        let rows: Vec<_> = run.records().iter().map(|record| record["row"].as_u64().unwrap()).collect();
        assert_eq!(rows.len(), ROWS);
        assert_eq!(rows.is_sorted(), first, "{rows:?}");
    }
}

/// Whoever reads the records may stop: the program ends as quietly as others do in a pipe.
#[test]
fn closed_stdout() {
    let server = Server::echo();
    let mut command = program();
    command.args(["--quiet", &server.url("/{1..1000000}")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("\"row\":"), "{line}");
    let until = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > until => {
                let _ = child.kill();
                panic!("it goes on for nobody");
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(status.code(), Some(0));
    assert_eq!(std::io::read_to_string(child.stderr.take().unwrap()).unwrap(), "");
    assert!(server.asked().len() < 1_000_000);
}

#[cfg(target_os = "linux")]
#[test]
fn no_room_for_records() {
    let server = Server::echo();
    let run = run_with(program().args(["--quiet", "--records", "/dev/full", &server.url("/{1..100}")]), b"");
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("--records") && run.stderr.contains("No space left"), "{run:?}");
}

/// A shell that limits the size of files, as if the disk were full: `blocks` of 512 bytes, or 1,024 in some shells.
#[cfg(unix)]
fn limited(blocks: u32, arguments: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
    let fetch = program();
    command.arg(fetch.get_program()).args(arguments);
    for (name, value) in fetch.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// A body that there is no room for costs its own record, and nothing of it is left.
#[cfg(unix)]
#[test]
fn no_room_for_a_body() {
    let server = Server::start(|asked, stream| {
        ok(stream, &vec![b'x'; if asked.path == "/large" { 300_000 } else { 10 }])?;
        Ok(Then::Keep)
    });
    let directory = tempfile::tempdir().unwrap();
    let urls = ["/1", "/large", "/2"].map(|path| server.url(path));
    let place = directory.path().to_str().unwrap().to_owned();
    let arguments = ["--quiet".into(), "--output-dir".into(), place].into_iter().chain(urls.clone());
    let run = run_with(&mut limited(100, arguments), b"");
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(run.kind(&urls[1]), "output");
    let message = run.message(&urls[1]);
    assert!(message.contains("a body can't be written in") && message.contains("--output-dir"), "{message}");
    assert_eq!([&urls[0], &urls[2]].map(|url| run.kind(url)), ["", ""]);
    let files = files(directory.path());
    assert_eq!(files.len(), 2, "{files:?}");
}

/// When there is no more room for records, whole lines stay, and the run can be gone on with.
#[cfg(unix)]
#[test]
fn records_stay_whole_without_room() {
    const ROWS: usize = 2_000;
    let server = Server::echo();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records");
    let url = server.url(&format!("/{{1..{ROWS}}}"));
    let arguments = |more: &[&str]| {
        let all = ["--quiet", "--records", path.to_str().unwrap(), &url];
        all.into_iter().chain(more.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let run = run_with(&mut limited(200, arguments(&[])), b"");
    assert!(run.code == Some(1) && run.stderr.contains("--records"), "{run:?}");
    let text = fs::read_to_string(&path).unwrap();
    let count = common::records(&text).len();
    assert!(text.ends_with('\n') && count > 100 && count < ROWS, "{count}");
    let run = run_with(program().args(arguments(&["--resume"])), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    let records = common::records(&fs::read_to_string(&path).unwrap());
    let rows: BTreeSet<_> = records.iter().map(|record| record["row"].as_u64().unwrap()).collect();
    assert_eq!((records.len(), rows.len()), (ROWS, ROWS));
}

/// A large body that is cut is gone on with, in the next attempt or the next run.
#[test]
fn the_rest_of_a_body() {
    const LENGTH: usize = 3_000_000;
    let content: Vec<u8> = (0..LENGTH).map(|index| (index / 251) as u8).collect();
    for retries in ["2", "0"] {
        let (served, bytes) = (AtomicUsize::new(0), content.clone());
        let server = Server::start(move |asked, stream| {
            let start = asked.header("range").map_or(0, |range| {
                assert_eq!(asked.header("if-range"), Some("\"v1\""));
                range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
            });
            let status = if start == 0 { "200 OK" } else { "206 Partial Content" };
            let range = format!("Content-Range: bytes {start}-{}/{LENGTH}\r\n", LENGTH - 1);
            let range = if start == 0 { "" } else { &range };
            write!(stream, "HTTP/1.1 {status}\r\nETag: \"v1\"\r\n{range}Content-Length: {}\r\n\r\n", LENGTH - start)?;
            if served.fetch_add(1, Ordering::SeqCst) == 0 {
                stream.write_all(&bytes[..2_000_000])?;
                return Ok(Then::Close);
            }
            stream.write_all(&bytes[start..])?;
            Ok(Then::Keep)
        });
        let directory = tempfile::tempdir().unwrap();
        let url = server.url("/large");
        let run = || {
            let mut command = program();
            command.args(["--quiet", "--retry", retries, "--retry-delay", "1ms", "--output-dir"]).arg(directory.path());
            run_with(command.arg(&url), b"")
        };
        let mut last = run();
        if retries == "0" {
            assert_eq!(last.kind(&url), "truncated", "{last:?}");
            last = run();
        }
        assert_eq!(last.code, Some(0), "{last:?}");
        let asked = server.asked();
        assert_eq!((asked.len(), asked[1].header("range")), (2, Some("bytes=2000000-")));
        let files = files(directory.path());
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(fs::read(&files[0]).unwrap() == content);
        assert_eq!(last.record(&url)["bytes"], LENGTH);
    }
}
