//! Looking into pages, in processes of their own.

mod common;

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::json;

use self::common::{Run, Server, Then, ok, program, respond, run_while, run_with};

/// A page on which [`CATASTROPHE`] takes longer than anybody waits.
fn catastrophic() -> &'static [u8] {
    static PAGE: OnceLock<Vec<u8>> = OnceLock::new();
    PAGE.get_or_init(|| "<p>x</p>".repeat(50_000).into_bytes())
}

/// For each element it goes through all combinations of those before, in search of one that isn't there.
const CATASTROPHE: &str = "a ~ p ~ p ~ p ~ p, title";

fn server() -> Server {
    Server::start(|asked, stream| {
        match asked.path.as_str() {
            "/catastrophic" => ok(stream, catastrophic())?,
            "/latin" => {
                respond(stream, "200 OK", &["Content-Type: text/html; charset=latin1"], b"<title>caf\xe9</title>")?
            }
            "/endless" => ok(stream, &vec![b' '; 17 * 1024 * 1024])?,
            path => ok(stream, format!("<title>{path}</title><a href='/x'>one</a><a>two</a>").as_bytes())?,
        }
        Ok(Then::Keep)
    })
}

fn good(arguments: &[&str], url: &str) -> Run {
    let run = run_with(program().arg("--quiet").args(arguments).arg(url), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run
}

#[test]
fn what_is_found_is_in_the_record() {
    let server = server();
    let url = server.url("/page");
    let found = |flag, rule| good(&[flag, rule], &url).record(&url)["extracted"].clone();
    assert_eq!(found("--extract-css", "title"), json!(["/page"]));
    assert_eq!(found("--extract-css", "a@href"), json!(["/x"]));
    assert_eq!(found("--extract-regex", "<a.*?>(.*?)</a>"), json!(["one", "two"]));
    assert_eq!(found("--extract-regex", "nothing"), json!([]));
    let url = server.url("/latin");
    assert_eq!(good(&["--extract-css", "title"], &url).record(&url)["extracted"], json!(["caf\u{e9}"]));
}

#[test]
fn a_bad_rule_is_refused_before_anything_is_sent() {
    let server = server();
    for (flag, rule) in [("--extract-css", "a["), ("--extract-regex", "(")] {
        let run = run_with(program().args([flag, rule]).arg(server.url("/page")), b"");
        assert!(run.code == Some(2) && run.stderr.contains(flag), "{run:?}");
    }
    assert!(server.asked().is_empty());
}

/// A page that takes too long, and one that is too long, cost a record each.
#[test]
fn a_catastrophic_page_costs_one_record() {
    let server = server();
    let urls = ["/1", "/catastrophic", "/2", "/endless", "/3"].map(|path| server.url(path));
    let mut command = program();
    command.args(["--quiet", "--extract-css", CATASTROPHE, "--extract-timeout", "2s", "--extract-workers", "1"]);
    let run = run_with(command.args(&urls), b"");
    assert_eq!(run.code, Some(1), "{run:?}");
    for (url, title) in [(&urls[0], "/1"), (&urls[2], "/2"), (&urls[4], "/3")] {
        assert_eq!(run.record(url)["extracted"], json!([title]), "{run:?}");
    }
    for (url, message) in [(&urls[1], "--extract-timeout"), (&urls[3], "longer than")] {
        assert_eq!(run.kind(url), "extract");
        assert!(run.message(url).contains(message), "{}", run.message(url));
        assert_eq!(run.record(url)["status"], 200, "it was fetched all the same");
    }
}

/// Sends a signal to the worker that is busy with the catastrophic page, and says what became of that page. The others
/// are what they would be without it.
#[cfg(target_os = "linux")]
fn interfered(signal: &'static str, timeout: &str) -> String {
    let server = server();
    let urls = ["/catastrophic", "/1", "/2"].map(|path| server.url(path));
    let mut command = program();
    command.args(["--quiet", "--extract-css", CATASTROPHE, "--extract-timeout", timeout, "--extract-workers", "1"]);
    let run = run_while(
        command.args(&urls),
        |parent| {
            let until = Instant::now() + Duration::from_secs(30);
            while !children(parent).into_iter().any(|child| is_busy(child) && kill(child, signal)) {
                assert!(Instant::now() < until, "nobody works on the page");
                std::thread::sleep(Duration::from_millis(10));
            }
        },
        |_| (),
    );
    assert_eq!(run.kind(&urls[0]), "extract", "{run:?}");
    assert_eq!(run.record(&urls[1])["extracted"], json!(["/1"]));
    assert_eq!(run.record(&urls[2])["extracted"], json!(["/2"]));
    run.message(&urls[0])
}

/// A worker that dies costs the record of its page.
#[cfg(target_os = "linux")]
#[test]
fn a_crash_costs_one_record() {
    let message = interfered("-KILL", "60s");
    assert!(message.contains("signal 9"), "{message}");
}

/// Ctrl-C goes to the workers of a terminal as well. They are there to finish what runs.
#[cfg(target_os = "linux")]
#[test]
fn workers_outlive_an_interruption() {
    let message = interfered("-INT", "10s");
    assert!(message.contains("--extract-timeout"), "{message}");
}

/// The child processes of a process.
fn children(parent: u32) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    processes.filter(|&process| stat(process).is_some_and(|stat| stat[1] == parent.to_string())).collect()
}

/// Whether it has worked for some tenths of a second, which is more than its start takes.
fn is_busy(process: u32) -> bool {
    stat(process).is_some_and(|stat| stat[11].parse::<u64>().is_ok_and(|ticks| ticks >= 40))
}

/// What the system says of a process, from its state on.
fn stat(process: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

fn kill(process: u32, signal: &str) -> bool {
    std::process::Command::new("kill")
        .args([signal, &process.to_string()])
        .status()
        .is_ok_and(|status| status.success())
}
