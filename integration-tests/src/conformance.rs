//! Checks that `CONFORMANCE.md` tells the truth.
//!
//! A test is named there as `target::test`. Each target checks its own names, in both directions: what the table names
//! exists, and a test that carries the number of a row stands in that row.

use std::collections::{BTreeMap, BTreeSet};

/// The table.
pub const TABLE: &str = include_str!("../CONFORMANCE.md");

/// The rows that must be in the table, with their flavours.
#[must_use]
pub fn rows() -> Vec<(String, &'static str)> {
    let flavours = |number: u32| match number {
        1..=3 | 5 | 10 | 11 => "F",
        12 | 13 => "F T",
        9 => "F T P",
        4 | 15 | 21 | 26 => "T",
        16 | 42 | 45..=54 | 56 | 60 => "P",
        _ => "T P",
    };
    let mut rows: Vec<_> = (1..=60).map(|number| (format!("P{number:02}"), flavours(number))).collect();
    rows.push(("S1".to_owned(), "P"));
    rows.push(("S2".to_owned(), "F"));
    rows.push(("S3".to_owned(), "T P"));
    rows.extend(["S4", "S5", "S6"].map(|row| (row.to_owned(), "P")));
    rows
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The row, such as `P06`.
    pub row: String,
    /// The flavours the row names.
    pub flavours: Vec<String>,
    /// Those of them that are covered.
    pub covered: Vec<String>,
    /// The tests, as `target::test`.
    pub tests: Vec<String>,
}

/// The lines of the table.
///
/// # Panics
/// If a line does not have four columns.
#[must_use]
pub fn table() -> Vec<Line> {
    let words = |cell: &str| cell.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    TABLE
        .lines()
        .filter(|line| line.starts_with("| P") || line.starts_with("| S"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [row, flavours, covered, tests] = cells[..] else {
                panic!("this line of CONFORMANCE.md does not have four columns: {line}");
            };
            Line {
                row: row.to_owned(),
                flavours: words(flavours),
                covered: words(covered).into_iter().filter(|word| word != "–").collect(),
                tests: tests
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .filter(|name| name.contains("::"))
                    .map(str::to_owned)
                    .collect(),
            }
        })
        .collect()
}

/// The row a test belongs to by its name: `threads::p06_…` to `P06`.
#[must_use]
pub fn row_of(test: &str) -> Option<String> {
    let name = test.rsplit("::").next()?;
    let number = name.split('_').next()?;
    let digits = number.strip_prefix('p').or_else(|| number.strip_prefix('s'))?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.to_uppercase())
}

/// Checks the tests of one target against the table.
///
/// # Panics
/// If they do not agree.
pub fn check_target(target: &str, trials: &BTreeSet<String>) {
    let prefix = format!("{target}::");
    // In the table, a test of the contract is named once and not for each executor.
    let mut own: BTreeMap<String, &String> = BTreeMap::new();
    for trial in trials {
        let name = trial.rsplit("::").next().unwrap_or(trial);
        own.insert(format!("{target}::{name}"), trial);
    }
    let mut named = BTreeSet::new();
    for line in table() {
        for test in line.tests.iter().filter(|test| test.starts_with(&prefix)) {
            assert!(own.contains_key(test), "{} names {test}, which does not exist", line.row);
            named.insert((line.row.clone(), test.clone()));
        }
    }
    for name in own.keys() {
        if let Some(row) = row_of(name) {
            assert!(
                named.contains(&(row.clone(), name.clone())),
                "{name} is a test of {row}, but CONFORMANCE.md does not say so"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_the_table_once_with_its_flavours() {
        let expected: Vec<_> = rows().into_iter().map(|(row, flavours)| (row, flavours.replace(' ', "+"))).collect();
        let found: Vec<_> = table().into_iter().map(|line| (line.row, line.flavours.join("+"))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn covered_rows_have_tests_and_covered_flavours_are_among_those_named() {
        for line in table() {
            assert_eq!(line.covered.is_empty(), line.tests.is_empty(), "{}", line.row);
            for flavour in &line.covered {
                assert!(line.flavours.contains(flavour), "{}", line.row);
            }
        }
    }

    #[test]
    fn the_count_is_right() {
        let all: usize = table().iter().map(|line| line.flavours.len()).sum();
        let covered: usize = table().iter().map(|line| line.covered.len()).sum();
        let count = format!("**{covered} of {all}**");
        assert!(TABLE.contains(&count), "CONFORMANCE.md must say {count}");
    }

    #[test]
    fn rows_are_read_from_the_names_of_tests() {
        assert_eq!(row_of("contract::p06_never_runs").as_deref(), Some("P06"));
        assert_eq!(row_of("futures::s2_tokens").as_deref(), Some("S2"));
        assert_eq!(row_of("contract::priorities"), None);
        assert_eq!(row_of("contract::stronger"), None);
    }
}
