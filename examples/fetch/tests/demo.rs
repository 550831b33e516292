//! `fetch --demo`, the first thing that people try.

mod common;

#[test]
fn the_demo_works_on_a_fresh_machine() {
    let run = common::run(["--demo", "--retry-delay", "10ms"]);
    // Two of its paths fail, to show what that looks like.
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let records = run.records();
    assert_eq!(records.len(), 8);
    let failed: Vec<_> = records.iter().filter(|record| record["error"]["kind"] == "status").collect();
    assert_eq!(failed.len(), 2, "{}", run.stdout);
    assert!(run.stderr.contains("6 succeeded, 2 failed"), "{}", run.stderr);
}

#[test]
fn paths_of_ones_own_are_fetched_from_the_demo_server() {
    let run = common::run(["--demo", "--quiet", "/bytes/100000", "/status/204"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let mut bytes: Vec<_> = run.records().iter().map(|record| record["bytes"].as_u64().unwrap()).collect();
    bytes.sort_unstable();
    assert_eq!(bytes, [0, 100_000]);
}
