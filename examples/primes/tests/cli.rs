//! The command line of `primes`: what it prints, what it refuses, and how it ends. A program that hangs is killed.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// The largest prime below 2^64: trial division would take years.
const ENDLESS: &str = "18446744073709551557";

fn primes() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_primes"));
    command.timeout(LIMIT);
    command
}

fn run(args: &[&str]) -> Output {
    primes().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn records(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The program refused to run: exit code 2, nothing on stdout, and each of `words` in the message.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(text(&output.stdout), "");
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in {message}");
    }
}

#[test]
fn the_default_numbers_are_prime() {
    let output = run(&["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let primes: BTreeSet<_> =
        records(&output).iter().map(|r| (r["n"].as_str().unwrap().to_owned(), r["prime"].as_bool())).collect();
    let expected = ["10897409", "20292113", "31518271", "40003027"].map(|n| (n.to_owned(), Some(true)));
    assert_eq!(primes, BTreeSet::from(expected));
}

#[test]
fn each_way_gives_the_same_records() {
    for pool in ["sequential", "threads", "processes"] {
        let output = run(&["--pool", pool, "--json", "0", "1", "2", "91", "97"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let mut found = Vec::new();
        for record in records(&output) {
            assert!(record["seconds"].as_f64().unwrap() >= 0.0);
            let worker = record["worker"].as_str().unwrap();
            match pool {
                "sequential" => assert_eq!(worker, "main"),
                "threads" => assert!(worker.starts_with("worker-"), "{worker}"),
                _ => assert!(worker.starts_with("pid "), "{worker}"),
            }
            found.push((record["n"].as_str().unwrap().parse::<u64>().unwrap(), record["prime"].as_bool().unwrap()));
        }
        found.sort_unstable();
        assert_eq!(found, [(0, false), (1, false), (2, true), (91, false), (97, true)], "{pool}");
    }
}

#[test]
fn text_names_each_number() {
    let output = run(&["97", "91", "--workers", "1"]);
    let text = text(&output.stdout);
    assert!(text.contains("97: prime (") && text.contains("91: not prime ("), "{text}");
}

#[test]
fn compare_measures_all_three_ways() {
    let output = run(&["--compare", "--json", "--workers", "2", "1000003", "1000033"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let records = records(&output);
    assert_eq!(records.len(), 1);
    let compared = records[0]["compare"].as_array().unwrap();
    let pools: Vec<_> = compared.iter().map(|entry| (entry["pool"].as_str().unwrap(), &entry["workers"])).collect();
    assert_eq!(pools, [("sequential", &1.into()), ("threads", &2.into()), ("processes", &2.into())]);
    for entry in compared {
        assert!(entry["wall_s"].as_f64().unwrap() > 0.0);
        assert!(entry["speedup"].as_f64().unwrap() > 0.0);
        assert!(!cfg!(unix) || entry["cpu_s"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(compared[0]["speedup"], 1.0);
}

#[test]
fn compare_prints_a_table() {
    let output = run(&["--compare", "1000003"]);
    let lines: Vec<_> = text(&output.stdout).lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(lines, ["pool", "sequential", "threads", "processes"]);
}

#[test]
fn miller_rabin_takes_numbers_of_any_size() {
    let (mersenne, composite) = ("170141183460469231731687303715884105727", "170141183460469231731687303715884105729");
    for pool in ["threads", "processes"] {
        let output =
            run(&["--method", "miller-rabin", "--pool", pool, "--json", ENDLESS, "3215031751", mersenne, composite]);
        for record in records(&output) {
            let n = record["n"].as_str().unwrap();
            assert_eq!(record["prime"], n == ENDLESS || n == mersenne, "{n}");
        }
    }
}

#[test]
fn a_number_whose_time_is_up_is_an_error_and_the_others_go_on() {
    for pool in ["threads", "processes"] {
        // More endless numbers than workers: each must give its worker back.
        let args = ["--pool", pool, "--timeout", "0.2", "--workers", "2", "--json", ENDLESS, ENDLESS, ENDLESS, "7"];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let (checked, failed): (Vec<_>, Vec<_>) = records(&output).into_iter().partition(|r| r["error"].is_null());
        assert_eq!((checked.len(), failed.len()), (1, 3), "{pool}");
        assert_eq!(checked[0]["n"], "7");
        assert!(failed.iter().all(|r| r["n"] == ENDLESS && r["error"].as_str().unwrap().contains("timeout of 200ms")));
    }
}

#[test]
fn numbers_come_from_files_and_standard_input() {
    let lines = "\u{feff}7\r\n\r\n# nothing\n  9 # not prime\n11";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, lines).unwrap();
    let from_file = run(&["--json", "--from", file.path().to_str().unwrap(), "13"]);
    let from_stdin = primes().args(["--json", "--from", "-", "13"]).write_stdin(lines).output().unwrap();
    for output in [from_file, from_stdin] {
        let numbers: BTreeSet<_> = records(&output).iter().map(|r| r["n"].as_str().unwrap().to_owned()).collect();
        assert_eq!(numbers, BTreeSet::from(["7", "9", "11", "13"].map(str::to_owned)));
    }
}

#[test]
fn a_bad_line_is_refused_with_its_place_before_anything_runs() {
    let stdin = |lines: &[u8]| primes().args(["--from", "-"]).write_stdin(lines).output().unwrap();
    assert_refused(&stdin(b"7\n# x\n1e7\n"), &["standard input, line 3", "\"1e7\"", "whole number"]);
    assert_refused(&stdin(b"7\n\xff\n"), &["standard input, line 2", "whole number"]);
    assert_refused(&stdin(b"# nothing\n"), &["no numbers", "one a line"]);
    let large = stdin(b"18446744073709551616\n");
    assert_refused(&large, &["standard input, line 1", "--method miller-rabin"]);
    assert_refused(&run(&["--from", "no/such/file"]), &["--from", "no/such/file"]);
}

#[test]
fn wrong_usage_is_refused_with_what_would_help() {
    assert_refused(&run(&["seven"]), &["\"seven\" is not a whole number"]);
    assert_refused(&run(&["--", "-7"]), &["\"-7\" is not a whole number"]);
    assert_refused(&run(&[""]), &["\"\" is not a whole number"]);
    assert_refused(&run(&["18446744073709551616"]), &["--method miller-rabin"]);
    assert_refused(&run(&["--workers", "0"]), &["--workers", "1..=1024"]);
    for timeout in ["0", "NaN", "inf", "1e300", "1e-12", "soon"] {
        assert_refused(&run(&["--timeout", timeout]), &["--timeout", "seconds above 0"]);
    }
    assert_refused(&run(&["--timeout=-1"]), &["--timeout", "seconds above 0"]);
    assert_refused(&run(&["--pool", "sequential", "--timeout", "1"]), &["--timeout", "--pool threads"]);
    assert_refused(&run(&["--pool", "sequential", "--workers", "2"]), &["--workers", "--pool threads"]);
    assert_refused(&run(&["--compare", "--timeout", "1"]), &["--compare", "--timeout"]);
    assert_refused(&run(&["--compare", "--pool", "threads"]), &["--compare", "--pool"]);
}

#[cfg(unix)]
#[test]
fn a_closed_standard_output_ends_it_quietly() {
    let script = r#"{ "$0" --from - --pool "$1"; echo "code $?" >&2; } | head -n 1"#;
    for pool in ["sequential", "threads", "processes"] {
        let numbers: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        let mut shell = Command::new("sh");
        let shell = shell.timeout(LIMIT).args(["-c", script, env!("CARGO_BIN_EXE_primes"), pool]);
        let output = shell.write_stdin(numbers).output().unwrap();
        assert_eq!(text(&output.stdout).lines().count(), 1);
        assert_eq!(text(&output.stderr), "code 0\n");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let output = Command::new("sh")
        .timeout(LIMIT)
        .args(["-c", r#""$0" 7 > /dev/full"#, env!("CARGO_BIN_EXE_primes")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard output"), "{output:?}");
}
