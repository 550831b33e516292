//! The command line of `pools`: that it measures, what it writes, what it refuses, how it ends. No test looks at how fast
//! something was. A program that hangs is killed.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

fn pools() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pools"));
    command.timeout(LIMIT);
    command
}

/// Measures two workloads with two executors, in a directory; with more arguments.
fn measure(directory: &Path, more: &[&str]) -> Output {
    let chosen = ["--quick", "--workers", "2", "--workloads", "no-op,cpu-1us", "--executors", "thread-pool,rayon"];
    pools().current_dir(directory).args(chosen).args(more).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Multiplies all throughputs of a report.
fn scale(report: &mut Value, factor: f64) {
    for executor in report["results"].as_object_mut().unwrap().values_mut() {
        for figures in executor.as_object_mut().unwrap().values_mut() {
            for end in figures["throughput_range"].as_array_mut().unwrap() {
                *end = json!(end.as_f64().unwrap() * factor);
            }
        }
    }
}

#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in {message}");
    }
}

#[test]
fn the_json_has_all_figures_of_each_executor_and_workload() {
    let directory = TempDir::new().unwrap();
    let output = measure(directory.path(), &["--json", "out.json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = read_json(&directory.path().join("out.json"));
    assert_eq!((&report["workers"], &report["quick"]), (&json!(2), &json!(true)));
    assert!(report["noise"]["verdict"].is_string());
    for (executor, peer) in [("thread-pool", "rayon"), ("rayon", "thread-pool")] {
        for workload in ["no-op", "cpu-1us"] {
            let figures = &report["results"][executor][workload];
            let mut positive = vec!["throughput_per_s", "p50_us", "p99_us"];
            if cfg!(target_os = "linux") {
                positive.extend(["cpu_s_per_million", "peak_rss_mib"]);
            }
            for name in positive {
                assert!(figures[name].as_f64().unwrap() > 0.0, "{executor}, {workload}: {name} of {figures}");
            }
            assert_eq!(figures["efficiency"].is_null(), workload == "no-op");
            assert!(figures["ratios"][peer].as_f64().unwrap() > 0.0);
            assert!(figures["p50_us"].as_f64() <= figures["p99_us"].as_f64());
        }
    }
    let shown = text(&output.stdout);
    for word in ["no-op: ", "cpu-1us: ", "thread-pool", "rayon", "The machine was"] {
        assert!(shown.contains(word), "{word:?} is missing in {shown}");
    }
}

#[test]
fn the_html_needs_nothing_else() {
    let directory = TempDir::new().unwrap();
    let more = ["--html", "out.html", "--workloads", "cpu-10us", "--executors", "process-pool-spawn,sequential"];
    let output = measure(directory.path(), if cfg!(unix) { &more } else { &more[..4] });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = std::fs::read_to_string(directory.path().join("out.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("</html>"));
    assert_eq!(page.matches("<svg").count(), if cfg!(unix) { 5 } else { 4 }, "workloads, peers, and the answer");
    assert_eq!(page.matches("<table").count(), 4);
    assert!(page.contains("@media print"));
    assert!(!cfg!(unix) || page.contains("over threads here"), "the answer is missing");
    for outside in ["http", "src=", "href=", "url(", "@import", "<script", "<link", "<img", "<iframe"] {
        assert!(!page.contains(outside), "{outside} leads out of the page");
    }
}

#[test]
fn a_regression_ends_with_1_and_none_with_0() {
    let directory = TempDir::new().unwrap();
    let output = measure(directory.path(), &["--json", "then.json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (factor, code) in [(1e-3, 0), (1e3, 1)] {
        let mut then = read_json(&directory.path().join("then.json"));
        scale(&mut then, factor);
        // Round trips are taken out of it: nobody knows what else runs on this machine.
        for executor in then["results"].as_object_mut().unwrap().values_mut() {
            for figures in executor.as_object_mut().unwrap().values_mut() {
                figures["p50_range"] = json!([1e9, 1e9]);
            }
        }
        std::fs::write(directory.path().join("scaled.json"), then.to_string()).unwrap();
        let output = measure(directory.path(), &["--baseline", "scaled.json"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let says = text(&output.stderr).contains("slower than the baseline: thread-pool, no-op");
        assert_eq!(says, code == 1, "{output:?}");
        assert!(!text(&output.stderr).contains("baseline: rayon"), "a peer is not ours to keep up");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn processes_and_crashes_are_measured_and_what_can_not_be_says_why() {
    let directory = TempDir::new().unwrap();
    let args = ["--quick", "--workers", "1", "--json", "out.json", "--workloads", "crash,async-wait,payload-1mib"];
    let executors = ["--executors", "process-pool-spawn,process-pool-forkserver,procspawn,thread-pool,threadpool"];
    let output = pools().current_dir(directory.path()).args(args).args(executors).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = read_json(&directory.path().join("out.json"));
    for executor in ["process-pool-spawn", "process-pool-forkserver", "procspawn"] {
        for workload in ["crash", "payload-1mib"] {
            assert!(report["results"][executor][workload].is_object(), "{executor}, {workload}: {report:#}");
        }
    }
    assert!(report["results"]["thread-pool"]["async-wait"].is_object());
    let reasons = &report["left_out"];
    assert!(reasons["thread-pool"]["crash"].as_str().unwrap().contains("take the whole program down"));
    assert!(reasons["threadpool"]["async-wait"].as_str().unwrap().contains("no timers"));
    assert!(reasons["procspawn"]["async-wait"].is_string());
}

#[test]
fn python_is_measured_or_its_absence_is_the_reason() {
    let directory = TempDir::new().unwrap();
    let args = ["--quick", "--workers", "2", "--json", "out.json", "--workloads", "map-chunks,payload-1kib"];
    let executors = ["--executors", "python-thread-pool,python-process-pool,python-multiprocessing"];
    let mut command = pools();
    let output = command.current_dir(directory.path()).args(args).args(executors).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = read_json(&directory.path().join("out.json"));
    for executor in ["python-thread-pool", "python-process-pool", "python-multiprocessing"] {
        let measured = report["results"][executor]["payload-1kib"].is_object();
        let absent = report["left_out"][executor]["payload-1kib"].as_str().is_some_and(|why| why.contains("python3"));
        assert!(measured != absent, "{report:#}");
    }
    // Without python3.
    let output = command.env("PATH", directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = read_json(&directory.path().join("out.json"));
    assert_eq!(
        report["left_out"]["python-process-pool"]["payload-1kib"],
        "python3 was not found: No such file or directory (os error 2)"
    );
}

#[test]
fn wrong_usage_is_refused_before_anything_is_measured() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("other.json"), r#"{"some": "other file"}"#).unwrap();
    assert_refused(&measure(directory.path(), &["--workers", "0"]), &["--workers"]);
    assert_refused(&pools().args(["--workloads", "nop"]).output().unwrap(), &["--workloads", "nop", "no-op"]);
    assert_refused(&pools().args(["--executors", "rayons"]).output().unwrap(), &["--executors", "rayon"]);
    assert_refused(&measure(directory.path(), &["--baseline", "none.json"]), &["--baseline", "none.json"]);
    let other = measure(directory.path(), &["--baseline", "other.json"]);
    assert_refused(&other, &["--baseline", "other.json", "not written by --json"]);
    assert_refused(&measure(directory.path(), &["--json", "none/out.json"]), &["--json", "none/out.json"]);
    assert_refused(&measure(directory.path(), &["--html", "."]), &["--html"]);
}

/// Everything that a runner starts stays in its group, whose members this counts.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    use std::io::Read;
    use std::process::{Command, Stdio};

    let mark = format!("interrupted-{}", std::process::id());
    let alive = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|process| {
                let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
                environment.windows(mark.len()).any(|part| part == mark.as_bytes())
            })
            .count()
    };
    let mut program = Command::new(env!("CARGO_BIN_EXE_pools"))
        .args(["--workers", "2", "--executors", "process-pool-spawn,process-pool-forkserver", "--workloads", "cpu-1ms"])
        .env("POOLS_TEST", &mark)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = std::time::Instant::now();
    while alive() < 4 {
        assert!(begin.elapsed() < LIMIT, "the program, a runner and two workers should have come up");
        std::thread::yield_now();
    }
    let pid = program.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let status = program.wait().unwrap();
    let mut errors = String::new();
    program.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(status.code(), Some(130), "{errors}");
    // Their deaths are under way, and take as long as the machine likes.
    while alive() > 0 {
        assert!(begin.elapsed() < LIMIT, "{} processes are left behind", alive());
        std::thread::yield_now();
    }
}
