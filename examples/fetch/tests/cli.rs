//! The command line of `fetch`: its records, its files, what it refuses, and how it ends. A program that hangs is killed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

fn fetch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
    command.timeout(LIMIT);
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command
}

fn run(args: &[&str]) -> Output {
    fetch().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The records, each checked for what every record has.
fn records(output: &Output) -> Vec<Value> {
    let records: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for record in &records {
        assert!(record["url"].is_string() && record["bytes"].is_u64() && record["attempts"].is_u64(), "{record}");
        assert!(record["seconds"].as_f64().unwrap() >= 0.0);
        assert_ne!(record["status"].is_u64(), record["error"]["kind"].is_string(), "{record}");
        assert_eq!(record["error"].is_object(), record["error"]["message"].is_string(), "{record}");
    }
    records
}

#[track_caller]
fn only(output: &Output) -> Value {
    let mut records = records(output);
    assert_eq!(records.len(), 1, "{output:?}");
    records.remove(0)
}

#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(text(&output.stdout), "");
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in {message}");
    }
}

/// Nobody listens there: the port is none that the system gives out.
const NOBODY: &str = "http://127.0.0.1:1/";

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_demo_works_on_a_fresh_machine() {
    // It must not ask a proxy for the loopback interface.
    let output = fetch().arg("--demo").env("http_proxy", NOBODY).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut statuses: Vec<_> = records(&output).iter().map(|record| record["status"].as_u64().unwrap()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 204, 404, 503]);
    let summary = text(&output.stderr);
    assert!(summary.contains("8 URLs: 6 good, 2 with status 400 or above, 0 failed; 100024 bytes"), "{summary}");
}

#[test]
fn records_come_as_they_complete() {
    let output = run(&["--demo", "/?sleep=1000", "/bytes/7"]);
    let records = records(&output);
    assert_eq!((&records[0]["bytes"], &records[1]["bytes"]), (&7.into(), &6.into()));
    assert!(records[1]["seconds"].as_f64().unwrap() >= 1.0);
}

#[test]
fn what_can_not_be_fetched_is_an_error_record() {
    for bad in ["nonsense", "ftp://127.0.0.1/", "http://", ""] {
        let output = run(&["--", bad]);
        let record = only(&output);
        assert_eq!((&record["url"], &record["error"]["kind"]), (&bad.into(), &"bad-url".into()));
        assert_eq!(record["attempts"], 0);
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_failing_connection_is_tried_again_and_counted() {
    for (retries, attempts) in [("0", 1), ("2", 3)] {
        let output = run(&["--retries", retries, NOBODY]);
        let record = only(&output);
        assert_eq!((&record["error"]["kind"], &record["attempts"]), (&"connect".into(), &attempts.into()));
        assert!(record["error"]["message"].as_str().unwrap().contains("refused"), "{record}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn a_second_attempt_may_succeed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for answer in
            ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole"]
        {
            let (mut connection, _) = listener.accept().unwrap();
            let _ = connection.read(&mut [0; 1024]).unwrap();
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    let directory = TempDir::new().unwrap();
    let output = run(&["--output", directory.path().to_str().unwrap(), &url]);
    let record = only(&output);
    assert_eq!((&record["status"], &record["attempts"], &record["bytes"]), (&200.into(), &3.into(), &5.into()));
    let names = names(directory.path());
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(std::fs::read(directory.path().join(&names[0])).unwrap(), b"whole");
}

#[test]
fn the_timeout_bounds_each_request() {
    let output = run(&["--demo", "--timeout", "0.2", "/?sleep=60000"]);
    let record = only(&output);
    assert_eq!((&record["error"]["kind"], &record["attempts"]), (&"timeout".into(), &1.into()));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_deadline_leaves_each_url_one_record() {
    let input: String = "/?sleep=60000\n".repeat(20);
    let args = ["--demo", "--deadline", "0.5", "--concurrency", "3", "--from", "-", "/bytes/3"];
    let output = fetch().args(args).write_stdin(input).output().unwrap();
    let records = records(&output);
    let late: Vec<_> = records.iter().filter(|record| record["error"]["kind"] == "deadline").collect();
    assert_eq!((records.len(), late.len()), (21, 20));
    assert!(late.iter().filter(|record| record["attempts"] == 1).count() >= 3, "{late:?}");
    assert!(late.iter().all(|record| record["url"].as_str().unwrap().contains("sleep=60000")));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn urls_come_from_files_and_standard_input() {
    let input = b"\xef\xbb\xbf/bytes/1\r\n\r\n# nothing\n  /bytes/2\n/\xff\n/bytes/3";
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("urls.txt");
    std::fs::write(&file, input).unwrap();
    let from_file = run(&["--demo", "--from", file.to_str().unwrap(), "/bytes/4"]);
    let from_stdin = fetch().args(["--demo", "--from", "-", "/bytes/4"]).write_stdin(input).output().unwrap();
    for output in [from_file, from_stdin] {
        let mut bytes: Vec<_> = records(&output).iter().map(|record| record["bytes"].as_u64().unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, [0, 1, 2, 3, 4]);
        assert_eq!(records(&output).iter().filter(|record| record["error"]["kind"] == "bad-url").count(), 1);
    }
    let implied = fetch().write_stdin(NOBODY).arg("--retries=0").output().unwrap();
    assert_eq!(only(&implied)["error"]["kind"], "connect");
    let nothing = fetch().write_stdin("").output().unwrap();
    assert_eq!((nothing.status.code(), text(&nothing.stdout)), (Some(0), ""));
}

#[test]
fn bodies_are_kept_under_safe_names() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("new/bodies");
    let long = format!("/{}", "x".repeat(3_000));
    let paths =
        ["/bytes/5", "/%2e%2e/%2e%2e/up", "/a/..%2f..%2fup?q=../../up", "/same", "/same", "/", "/status/404", &long];
    let output = run(&[&["--demo", "--output", directory.to_str().unwrap()], &paths[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut files: Vec<_> = records(&output).iter().map(|record| record["file"].as_str().unwrap().to_owned()).collect();
    files.sort();
    for (index, file) in files.iter().enumerate() {
        let name = Path::new(file).strip_prefix(&directory).unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("{:06}-127.0.0.1", index + 1)), "{name}");
        assert!(
            name.len() <= 120 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
            "{name}"
        );
    }
    assert_eq!(names(&directory).len(), paths.len(), "nothing but the bodies is left");
    assert_eq!(std::fs::read(&files[0]).unwrap(), b"xxxxx");
    assert_eq!(std::fs::read(&files[6]).unwrap(), b"");
}

#[test]
fn an_unfinished_body_leaves_no_file() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let _ = connection.read(&mut [0; 1024]).unwrap();
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal").unwrap();
        let _ = connection.read_to_end(&mut Vec::new()); // Until the other side gives up.
    });
    let directory = TempDir::new().unwrap();
    let output = run(&["--deadline", "0.5", "--output", directory.path().to_str().unwrap(), &url]);
    assert_eq!(only(&output)["error"]["kind"], "deadline");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn wrong_usage_is_refused_with_what_would_help() {
    assert_refused(&run(&["--concurrency", "0"]), &["--concurrency", "1..=100000"]);
    for flag in ["--timeout", "--deadline"] {
        for value in ["0", "NaN", "1e300", "soon"] {
            assert_refused(&run(&["--demo", flag, value]), &[flag, "seconds above 0"]);
        }
    }
    assert_refused(&run(&["--retries=-1"]), &["--retries"]);
    assert_refused(&run(&["--from", "no/such/file"]), &["--from", "no/such/file"]);
    assert_refused(&run(&["--from", "."]), &["--from", "directory"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    assert_refused(&run(&["--demo", "--output", path]), &["--output", path]);
}

#[cfg(unix)]
#[test]
fn a_closed_standard_output_ends_it_quietly() {
    // The input never ends, so only the closed output can end the program.
    let script = r#"yes "$1" | { "$0" --retries 0; echo "code $?" >&2; } | head -n 1"#;
    let mut shell = Command::new("sh");
    let shell = shell.timeout(LIMIT).args(["-c", script, env!("CARGO_BIN_EXE_fetch"), NOBODY]);
    let output = shell.output().unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 1);
    assert_eq!(text(&output.stderr), "code 0\n");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_without_leaving_files() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let directory = TempDir::new().unwrap();
    let (pid, bodies) = (directory.path().join("pid"), directory.path().join("bodies"));
    let mut shell = Command::new("sh");
    shell.timeout(LIMIT).args(["-c", r#"echo $$ > "$1"; exec "$0" --output "$2" "$3""#, env!("CARGO_BIN_EXE_fetch")]);
    shell.args([pid.as_os_str(), bodies.as_os_str(), url.as_ref()]);
    let watched = bodies.clone();
    thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let _ = connection.read(&mut [0; 1024]).unwrap();
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal").unwrap();
        while names(&watched).is_empty() {
            thread::yield_now(); // Until the body has begun.
        }
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(std::process::Command::new("kill").args(["-INT", pid.trim()]).status().unwrap().success());
        let _ = connection.read_to_end(&mut Vec::new());
    });
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(text(&output.stderr).contains("interrupted"), "{output:?}");
    assert_eq!(names(&bodies), [""; 0]);
}
