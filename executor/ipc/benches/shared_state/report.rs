//! The table, and the same as JSON.

use serde_json::{Value, json};

use crate::rows::{Goal, Python, Row, Unit};

/// From this share of the machine on, used by others, a row's numbers are those of a noisy machine.
const NOISY: f64 = 0.10;

/// From this half-width of the rounds on, too.
const WIDE: f64 = 0.35;

/// Seconds for each operation, one number a round.
#[derive(Debug, Default)]
pub(crate) struct Rounds(pub(crate) Vec<f64>);

impl Rounds {
    fn median(&self) -> Option<f64> {
        median(self.0.clone())
    }

    /// How far the middle half of the rounds lies from the median, at most.
    fn spread(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(median) = median(sorted.clone()) else { return 0.0 };
        let quarter = sorted.len() / 4;
        let (low, high) = (sorted[quarter], sorted[sorted.len() - 1 - quarter]);
        (median / low - 1.0).max(high / median - 1.0)
    }
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => None,
        len if len % 2 == 1 => Some(numbers[len / 2]),
        len => Some((numbers[len / 2 - 1] + numbers[len / 2]) / 2.0),
    }
}

/// What came of a row.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) ours: Rounds,
    pub(crate) python: Rounds,
    pub(crate) limit: Rounds,
    /// The share of the machine that others used.
    pub(crate) others: f64,
    pub(crate) errors: Vec<String>,
}

impl Measured {
    /// The median of the ratios of the rounds.
    fn ratio(&self) -> Option<f64> {
        median(self.python.0.iter().zip(&self.ours.0).map(|(python, ours)| python / ours).collect())
    }

    fn verdict(&self, goal: Goal) -> &'static str {
        let met = match (goal, self.ours.median()) {
            (_, None) => return "not measured",
            (Goal::None, _) => return "",
            (Goal::Times(goal), _) => match self.ratio() {
                Some(ratio) => ratio >= goal,
                None => return "no Python",
            },
            (Goal::Rate(goal), Some(seconds)) => 1.0 / seconds >= goal,
            (Goal::Seconds(goal), Some(seconds)) => seconds <= goal,
        };
        if met { "met" } else { "missed" }
    }

    fn is_noisy(&self) -> bool {
        self.others > NOISY || self.ours.spread() > WIDE || self.python.spread() > WIDE
    }
}

/// The table as it grows.
#[derive(Debug)]
pub(crate) struct Report {
    python: Option<String>,
    cores: usize,
    rows: Vec<Value>,
    missed: Vec<&'static str>,
    noisy: usize,
    failed: Vec<String>,
}

impl Report {
    pub(crate) fn begin(cores: usize, python: Option<&str>) -> Report {
        println!(
            "Shared state between processes, on {cores} cores; {}.",
            python.map_or("no python3, so the column stays empty".to_owned(), |version| format!("Python {version}"))
        );
        println!("Median of the rounds ± the middle half of them; × Python: median of the ratios of the rounds.\n");
        line(["", "ours", "Python", "limit", "× Python", "goal", ""]);
        Report {
            python: python.map(str::to_owned),
            cores,
            rows: Vec::new(),
            missed: Vec::new(),
            noisy: 0,
            failed: Vec::new(),
        }
    }

    pub(crate) fn skipped(&mut self, row: &Row, why: &str) {
        line([row.title, why, "", "", "", &goal(row.goal), ""]);
        self.rows.push(json!({ "name": row.name, "title": row.title, "skipped": why }));
    }

    pub(crate) fn measured(&mut self, row: &'static Row, measured: Measured) {
        let verdict = measured.verdict(row.goal);
        let noise = if measured.is_noisy() {
            format!(" (noisy: others used {:.0} %)", measured.others * 100.0)
        } else {
            String::new()
        };
        let python = match (row.python, &self.python) {
            (Python::Lacks, _) => "–".to_owned(),
            (Python::Never, _) => "never".to_owned(),
            (Python::Measured, None) => "no python3".to_owned(),
            (Python::Measured, Some(_)) => number(row.unit, &measured.python),
        };
        let ratio = measured.ratio().map_or("–".to_owned(), |ratio| format!("{} ×", figures(ratio)));
        line([
            row.title,
            &number(row.unit, &measured.ours),
            &python,
            &number(row.unit, &measured.limit),
            &ratio,
            &goal(row.goal),
            &format!("{verdict}{noise}"),
        ]);
        for error in &measured.errors {
            println!("    {error}");
        }
        if verdict == "missed" {
            self.missed.push(row.name);
        }
        self.noisy += usize::from(measured.is_noisy());
        self.failed.extend(measured.errors.iter().cloned());
        let rounds = |rounds: &Rounds| json!({ "seconds_per_operation": rounds.median(), "spread": rounds.spread(), "rounds": rounds.0 });
        self.rows.push(json!({
            "name": row.name,
            "title": row.title,
            "unit": format!("{:?}", row.unit),
            "ours": rounds(&measured.ours),
            "python": rounds(&measured.python),
            "limit": rounds(&measured.limit),
            "times_python": measured.ratio(),
            "goal": goal(row.goal),
            "verdict": verdict,
            "noisy": measured.is_noisy(),
            "used_by_others": measured.others,
            "errors": measured.errors,
        }));
    }

    /// Prints the summary; returns what could not be measured.
    pub(crate) fn end(&self) -> Vec<String> {
        println!();
        match self.missed.as_slice() {
            [] => println!("No goal was missed."),
            missed => println!("Missed: {}.", missed.join(", ")),
        }
        if self.noisy > 0 {
            println!(
                "The machine was too noisy in {} of {} rows: others used more than {:.0} % of it, or the rounds differed by more than {:.0} %. \
                 Run those again when it is quiet.",
                self.noisy,
                self.rows.len(),
                NOISY * 100.0,
                WIDE * 100.0
            );
        }
        self.failed.clone()
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "cores": self.cores, "python": self.python, "rows": self.rows })
    }
}

fn line(columns: [&str; 7]) {
    let [title, ours, python, limit, ratio, goal, verdict] = columns;
    let text = format!("{title:<52}{ours:>17}{python:>17}{limit:>17}{ratio:>12}{goal:>12}   {verdict}");
    println!("{}", text.trim_end());
}

fn goal(goal: Goal) -> String {
    match goal {
        Goal::Times(times) => format!("≥ {times} ×"),
        Goal::Rate(rate) => format!("≥ {}/s", scaled(rate)),
        Goal::Seconds(seconds) => format!("< {} ms", seconds * 1e3),
        Goal::None => String::new(),
    }
}

fn number(unit: Unit, rounds: &Rounds) -> String {
    let Some(seconds) = rounds.median() else { return "–".to_owned() };
    let text = match unit {
        Unit::Ops => format!("{}/s", scaled(1.0 / seconds)),
        Unit::Elements(count) => format!("{}/s", scaled(count as f64 / seconds)),
        Unit::Bytes(count) => format!("{}B/s", scaled(count as f64 / seconds)),
        Unit::Time(_) => format!("{} ms", figures(seconds * 1e3)),
    };
    format!("{text} ±{:>2.0} %", rounds.spread() * 100.0)
}

fn scaled(rate: f64) -> String {
    let (unit, letter) = match rate {
        1e9.. => (1e9, "G"),
        1e6.. => (1e6, "M"),
        1e3.. => (1e3, "k"),
        _ => (1.0, ""),
    };
    format!("{} {letter}", figures(rate / unit))
}

/// Three digits at most, unless there are more before the point.
fn figures(number: f64) -> String {
    match number {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
