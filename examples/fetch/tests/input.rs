//! The rows: where they come from, how they are written, and that a bad one costs itself alone.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;

use common::{Run, Server, program, run, run_with};
use serde_json::Value;

fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    (directory, path)
}

/// The records in the order of the input: one for each row, numbered without a gap.
#[track_caller]
fn rows(run: &Run) -> Vec<Value> {
    let mut records = run.records();
    records.sort_by_key(|record| record["row"].as_u64().unwrap());
    let numbers: Vec<_> = records.iter().map(|record| record["row"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>(), "{}", run.stderr);
    records
}

/// `ok`, or the kind of the error.
fn outcome(record: &Value) -> &str {
    record["error"]["kind"].as_str().unwrap_or("ok")
}

#[test]
fn rows_come_from_arguments_files_and_standard_input() {
    let server = Server::echo();
    let lines = format!("\u{feff}{}\r\n\r\n# nothing\n  {}\t\n", server.url("/1"), server.url("/2"));
    let (_directory, path) = file("urls.txt", &lines);
    let argument = server.url("/{a,b}");
    let from_file = run(["--from", path.to_str().unwrap(), &argument]);
    let from_stdin = run_with(program().args(["--from", "-", &argument]), lines.as_bytes());
    let implied = run_with(&mut program(), lines.as_bytes());
    for (run, paths) in [
        (&from_file, &["/a", "/b", "/1", "/2"][..]),
        (&from_stdin, &["/a", "/b", "/1", "/2"]),
        (&implied, &["/1", "/2"]),
    ] {
        assert_eq!(run.code, Some(0), "{run:?}");
        let urls: Vec<_> = rows(run).iter().map(|record| record["url"].as_str().unwrap().to_owned()).collect();
        assert_eq!(urls, paths.iter().map(|path| server.url(path)).collect::<Vec<_>>());
    }
}

#[test]
fn a_bad_row_has_a_record_with_file_and_line_and_the_rest_goes_on() {
    let server = Server::echo();
    let mut lines = Vec::new();
    for line in [
        server.url("/first").as_bytes(),
        b"\xff\xfe",
        b"http://a/\0",
        b"no url",
        b"http://a:65536/",
        b"http://user:secret@a:65536/",
        b"ftp://a/",
        &[b'x'; (1 << 20) + 1],
        b"http://a/{1..99999999999999999999}",
        server.url("/last").as_bytes(),
    ] {
        lines.extend_from_slice(line);
        lines.extend_from_slice(b"\r\n");
    }
    let (_directory, path) = file("urls.txt", &lines);
    let run = run(["--from".as_ref(), path.as_os_str()]);
    let records = rows(&run);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(records.len(), 10);
    assert_eq!((outcome(&records[0]), outcome(&records[9])), ("ok", "ok"));
    for (record, line) in records[1..9].iter().zip(2..) {
        assert_eq!(outcome(record), "bad-input", "{record}");
        let message = record["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("{}:{line}: ", path.display())), "{message}");
        assert_eq!((&record["attempts"], &record["bytes"]), (&0.into(), &0.into()));
    }
    assert!(!run.stdout.contains("secret") && !run.stderr.contains("secret"));
}

#[test]
fn passwords_in_urls_are_sent_and_not_shown() {
    let server = Server::echo();
    let run = run([format!("http://user:secret@{}/", server.address)]);
    assert_eq!(server.asked()[0].header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    assert_eq!(rows(&run)[0]["url"], server.url("/"));
    assert!(!run.stdout.contains("secret") && !run.stderr.contains("secret"), "{run:?}");
}

#[test]
fn tables_and_json_lines() {
    let server = Server::echo();
    let table = format!("id,href,method\n7,\"{}\",\n8,{},DELETE\n,,\n", server.url("/?a,b"), server.url("/8"));
    let (_directory, path) = file("in.csv", table);
    let run_table = run(["--column", "href", "--from", path.to_str().unwrap()]);
    let records = rows(&run_table);
    assert_eq!(records.iter().map(outcome).collect::<Vec<_>>(), ["ok", "ok", "bad-input"]);
    assert_eq!((&records[0]["id"], &records[1]["id"], &records[2]["id"]), (&"7".into(), &"8".into(), &"3".into()));
    assert_eq!((&records[0]["method"], &records[1]["method"]), (&"GET".into(), &"DELETE".into()));
    assert_eq!(records[2].get("method"), None, "it has none");

    let lines = format!(
        "{{\"url\": \"{0}\", \"method\": \"PUT\", \"headers\": {{\"X-A\": \"1\"}}, \"id\": \"x\", \
         \"body\": {{\"file\": \"a.bin\"}}}}\n\
         {{\"url\": \"{0}\", \"nonsense\": 1}}\n\
         {{\"url\": \"{0}\", \"body\": {{\"base64\": \"AP8=\"}}}}\n",
        server.url("/json")
    );
    let (directory, path) = file("in.jsonl", lines);
    fs::write(directory.path().join("a.bin"), "from a file").unwrap();
    let run_lines = run(["--concurrency=1", "--from", path.to_str().unwrap()]);
    let records = rows(&run_lines);
    assert_eq!(records.iter().map(outcome).collect::<Vec<_>>(), ["ok", "bad-input", "ok"], "{run_lines:?}");
    assert!(records[1]["error"]["message"].as_str().unwrap().contains("`nonsense`"), "{}", records[1]);
    let asked: Vec<_> = server.asked().into_iter().filter(|asked| asked.path == "/json").collect();
    assert_eq!(
        (asked[0].method.as_str(), asked[0].header("x-a"), asked[0].body.as_slice()),
        ("PUT", Some("1"), &b"from a file"[..])
    );
    assert_eq!((asked[1].method.as_str(), asked[1].body.as_slice()), ("POST", &[0, 255][..]));

    // With --deny-private the rows may be somebody else's.
    let guarded = run(["--deny-private", "--from", path.to_str().unwrap()]);
    assert!(rows(&guarded)[0]["error"]["message"].as_str().unwrap().contains("--deny-private"), "{guarded:?}");
}

#[test]
fn strict_sends_nothing_if_any_row_is_bad() {
    let server = Server::echo();
    let (good, bad) = (server.url("/{1..3}\n"), "no url\n".repeat(12));
    let (_directory, path) = file("urls.txt", format!("{good}{bad}"));
    let from_file = run(["--strict", "--from", path.to_str().unwrap()]);
    let from_stdin = run_with(program().arg("--strict"), format!("{good}{bad}").as_bytes());
    for (run, name) in [(from_file, path.display().to_string()), (from_stdin, "standard input".into())] {
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
        for words in ["--strict", "12 bad rows", &format!("{name}:2: "), "and 2 more"] {
            assert!(run.stderr.contains(words), "{words}: {}", run.stderr);
        }
    }
    assert_eq!(server.connections(), 0);
    // Standard input is read twice then.
    let run = run_with(program().arg("--strict"), good.as_bytes());
    assert_eq!((run.code, rows(&run).len(), server.asked().len()), (Some(0), 3, 3));
}

#[test]
fn duplicates_are_left_out() {
    let server = Server::echo();
    let run = run(["--dedupe", &server.url("/{1..3}"), &server.url("/2"), &server.url("/[2-4]")]);
    let mut paths: Vec<_> = server.asked().into_iter().map(|asked| asked.path).collect();
    paths.sort();
    assert_eq!((rows(&run).len(), paths), (4, vec!["/1".to_owned(), "/2".into(), "/3".into(), "/4".into()]));
}

#[test]
fn braces_are_taken_as_they_are_if_asked() {
    let server = Server::echo();
    let run = run(["--globoff", &server.url("/{1..3}[1-2]")]);
    assert_eq!((run.code, server.asked().len(), server.asked()[0].path.as_str()), (Some(0), 1, "/%7B1..3%7D[1-2]"));
}

#[test]
fn a_row_is_fetched_before_the_next_one_is_there() {
    let server = Server::echo();
    let mut command = program();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    for number in 1..=3 {
        // The next line is written only when this one has its record: a list that is read as a whole would hang here.
        writeln!(input, "{}", server.url(&format!("/{number}"))).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["row"], number);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_range_without_end_takes_no_memory() {
    let server = Server::echo();
    let mut command = program();
    command.args(["--quiet", &server.url("/{1..1000000000000}")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let records = BufReader::new(child.stdout.take().unwrap()).lines().take(2_000).count();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    assert_eq!(records, 2_000);
    assert!(peak.parse::<u64>().unwrap() < 64 << 10, "{peak} KiB");
}
