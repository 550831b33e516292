//! What a measurement found: the report as data (the JSON), as tables on the terminal, and compared with an earlier one.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use clap::ValueEnum as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::executor::Executor;
use crate::measure::Measurement;
use crate::stats::{Noise, Threshold, length, median, range, ratio, short};
use crate::workload::Workload;

/// A slow-down up to this is never called a regression.
const TOLERANCE: f64 = 0.10;

/// The same where there was a single round, whose spread nobody knows.
const TOLERANCE_OF_ONE: f64 = 0.50;

/// By the name of an executor, then by that of a workload.
type Matrix<T> = BTreeMap<String, BTreeMap<String, T>>;

/// Everything that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The version of the program.
    pub(crate) version: String,
    pub(crate) system: String,
    pub(crate) cores: usize,
    pub(crate) workers: usize,
    pub(crate) quick: bool,
    pub(crate) seconds: f64,
    pub(crate) noise: Noise,
    pub(crate) threshold: Option<Threshold>,
    pub(crate) results: Matrix<Figures>,
    /// Why what is missing is missing.
    pub(crate) left_out: Matrix<String>,
}

/// What was found of one executor with one workload: medians over the rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) throughput_per_s: f64,
    /// Of the slowest and the fastest round.
    pub(crate) throughput_range: [f64; 2],
    /// The difference of these two, as a part of the median.
    pub(crate) spread: f64,
    /// Against workers that do nothing but the work of the tasks; none where that has no length.
    pub(crate) efficiency: Option<f64>,
    /// From the submit to the result, with nothing else under way.
    pub(crate) p50_us: f64,
    pub(crate) p50_range: [f64; 2],
    pub(crate) p99_us: f64,
    pub(crate) cpu_s_per_million: Option<f64>,
    pub(crate) peak_rss_mib: Option<f64>,
    pub(crate) rounds: usize,
    /// How many tasks a round had.
    pub(crate) tasks: u64,
    /// By peer: so many times its throughput (above 1 is faster).
    pub(crate) ratios: BTreeMap<String, f64>,
    /// By peer: so many times its p50 (below 1 is faster).
    pub(crate) p50_ratios: BTreeMap<String, f64>,
}

impl Report {
    pub(crate) fn new(measurement: &Measurement, workers: usize, quick: bool) -> Self {
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            system: format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
            cores: measurement.cores,
            workers,
            quick,
            seconds: measurement.seconds,
            noise: Noise::of(&measurement.probes),
            threshold: threshold(measurement),
            results: Matrix::new(),
            left_out: Matrix::new(),
        };
        for cell in &measurement.cells {
            let (executor, workload) = (cell.executor.name(), cell.workload.name());
            if let Some(reason) = &cell.left_out {
                report.left_out.entry(executor).or_default().insert(workload, reason.clone());
            } else if !cell.rounds.is_empty() {
                let figures = figures(measurement, cell.executor, cell.workload, workers);
                report.results.entry(executor).or_default().insert(workload, figures);
            }
        }
        report
    }

    pub(crate) fn figures(&self, executor: Executor, workload: Workload) -> Option<&Figures> {
        self.results.get(&executor.name())?.get(&workload.name())
    }

    /// Who was measured with a workload, the fastest first.
    pub(crate) fn ranked(&self, executors: &[Executor], workload: Workload) -> Vec<(Executor, &Figures)> {
        let figures = |executor: &Executor| Some((*executor, self.figures(*executor, workload)?));
        let mut rows: Vec<_> = executors.iter().filter_map(figures).collect();
        rows.sort_by(|(_, a), (_, b)| b.throughput_per_s.total_cmp(&a.throughput_per_s));
        rows
    }

    /// The fastest competitor of one of our pools, and so many times its throughput that ours has.
    pub(crate) fn best_peer(&self, ours: Executor, workload: Workload) -> Option<(Executor, f64)> {
        let ratios = &self.figures(ours, workload)?.ratios;
        let peers = Executor::value_variants().iter().filter(|peer| ours.competes_with(**peer));
        peers.filter_map(|peer| Some((*peer, *ratios.get(&peer.name())?))).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// For each workload, how our pools compare with the fastest of their peers; the first row is the head. Nothing if
    /// there is nothing to compare.
    pub(crate) fn against_best(&self, executors: &[Executor], workloads: &[Workload]) -> Vec<Vec<String>> {
        let ours: Vec<_> = executors.iter().copied().filter(|executor| executor.is_ours()).collect();
        let cell = |executor: &Executor, workload| {
            self.best_peer(*executor, workload).map(|(peer, ratio)| format!("{} × {}", short(ratio), peer.name()))
        };
        let rows = workloads.iter().filter_map(|workload| {
            let cells: Vec<_> = ours.iter().map(|executor| cell(executor, *workload)).collect();
            let cells = cells.iter().any(Option::is_some).then_some(cells)?;
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned()));
            Some(std::iter::once(workload.name()).chain(cells).collect())
        });
        let rows: Vec<Vec<String>> = rows.collect();
        if rows.is_empty() {
            return rows;
        }
        let head = std::iter::once(String::new()).chain(ours.iter().map(|executor| executor.name())).collect();
        std::iter::once(head).chain(rows).collect()
    }

    /// The figures of a workload, the fastest executor first, without columns that are empty; the first row is the head.
    pub(crate) fn table(&self, rows: &[(Executor, &Figures)], workload: Workload) -> Vec<Vec<String>> {
        let columns = COLUMNS.iter().filter_map(|(head, cell)| {
            let cells: Vec<_> = rows.iter().map(|(executor, figures)| cell(*executor, workload, figures)).collect();
            let any = cells.iter().any(Option::is_some);
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned()));
            any.then(|| std::iter::once((*head).to_owned()).chain(cells).collect::<Vec<_>>())
        });
        let columns: Vec<_> = columns.collect();
        (0..=rows.len()).map(|row| columns.iter().map(|column| column[row].clone()).collect()).collect()
    }

    /// Workloads and the reasons why executors are missing in them, each reason once.
    pub(crate) fn reasons(&self, workload: Workload) -> BTreeMap<&str, Vec<&str>> {
        let mut reasons = BTreeMap::<&str, Vec<&str>>::new();
        for (executor, workloads) in &self.left_out {
            if let Some(reason) = workloads.get(&workload.name()) {
                reasons.entry(reason).or_default().push(executor);
            }
        }
        reasons
    }

    /// For a terminal.
    pub(crate) fn text(&self, executors: &[Executor], workloads: &[Workload]) -> String {
        let mut text = String::new();
        for workload in workloads {
            text += &format!("\n{}: {}\n", workload.name(), workload.description());
            let rows = self.ranked(executors, *workload);
            if !rows.is_empty() {
                text += &aligned(self.table(&rows, *workload), CellAlignment::Right);
            }
            for (reason, executors) in self.reasons(*workload) {
                text += &format!("  without {}: {reason}\n", executors.join(", "));
            }
        }
        let best = self.against_best(executors, workloads);
        if !best.is_empty() {
            text += &format!("\n{AGAINST_BEST}\n{}", aligned(best, CellAlignment::Left));
        }
        text += "\n";
        if let Some(threshold) = &self.threshold {
            text += &format!("{}\n", threshold.sentence);
        }
        text + &format!("{}\n", self.noise.verdict)
    }

    /// Where our executors became slower than in an earlier report, by more than the noise: even the best round of now
    /// is more than a tenth worse than the worst round of then, and as much more as the machine was unsteady in its
    /// median. Each as a line of text.
    ///
    /// # Errors
    /// When the two can't be compared.
    pub(crate) fn regressions(&self, earlier: &Report, ours: &[Executor]) -> Result<Vec<String>> {
        ensure!(
            self.workers == earlier.workers,
            "it was measured with {} workers, not {}: use --workers {}",
            earlier.workers,
            self.workers,
            earlier.workers
        );
        let unsteady = [self, earlier].map(|report| report.noise.median - 1.0).into_iter().sum::<f64>().max(0.0);
        let (mut compared, mut found) = (0, Vec::new());
        for executor in ours {
            let name = executor.name();
            let (Some(now), Some(then)) = (self.results.get(&name), earlier.results.get(&name)) else { continue };
            for (workload, now) in now {
                let Some(then) = then.get(workload) else { continue };
                compared += 1;
                let single = now.rounds.min(then.rounds) < 2;
                let tolerance = 1.0 + unsteady + if single { TOLERANCE_OF_ONE } else { TOLERANCE };
                if now.throughput_range[1] * tolerance < then.throughput_range[0] {
                    let (now, then) = (short(now.throughput_per_s), short(then.throughput_per_s));
                    found.push(format!("{name}, {workload}: {now} tasks/s after {then}"));
                }
                if now.p50_range[0] > then.p50_range[1] * tolerance {
                    let (now, then) = (short(now.p50_us), short(then.p50_us));
                    found.push(format!("{name}, {workload}: a round trip of {now} µs after {then}"));
                }
            }
        }
        ensure!(compared > 0, "it has none of the executors and workloads that were measured now");
        Ok(found)
    }
}

/// The title of [`Report::against_best`].
pub(crate) const AGAINST_BEST: &str =
    "Throughput of polypool's pools over the fastest of their peers, above 1 is faster";

type Column = (&'static str, fn(Executor, Workload, &Figures) -> Option<String>);

/// What a table shows, by the heads of its columns.
const COLUMNS: [Column; 11] = [
    ("", |executor, _, _| Some(executor.name())),
    ("tasks/s", |_, _, figures| Some(short(figures.throughput_per_s))),
    // Threads only hand the buffer over.
    ("GB/s", |executor, workload, figures| {
        let bytes = workload.payload().filter(|_| executor.has_processes())?;
        Some(short(2.0 * bytes as f64 * figures.throughput_per_s / 1e9))
    }),
    ("spread", |_, _, figures| (figures.rounds > 1).then(|| percent(figures.spread))),
    ("efficiency", |_, _, figures| figures.efficiency.map(percent)),
    ("p50", |_, _, figures| Some(length(figures.p50_us))),
    ("p99", |_, _, figures| Some(length(figures.p99_us))),
    // Seconds for a million are microseconds for one.
    ("CPU a task", |_, _, figures| figures.cpu_s_per_million.map(length)),
    ("memory", |_, _, figures| figures.peak_rss_mib.map(|mib| format!("{} MiB", short(mib)))),
    ("tasks", |_, _, figures| Some(figures.tasks.to_string())),
    ("rounds", |_, _, figures| Some(figures.rounds.to_string())),
];

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// Rows as lines; the first is the head.
fn aligned(rows: Vec<Vec<String>>, alignment: CellAlignment) -> String {
    let mut rows = rows.into_iter();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(rows.next().unwrap_or_default());
    table.add_rows(rows);
    table.column_iter_mut().skip(1).for_each(|column| {
        column.set_cell_alignment(alignment);
    });
    format!("{}\n", table.trim_fmt())
}

fn figures(measurement: &Measurement, executor: Executor, workload: Workload, workers: usize) -> Figures {
    let rounds = measurement.rounds(executor, workload);
    let throughput = median(rounds.iter().map(|round| round.throughput));
    let throughput_range = range(rounds.iter().map(|round| round.throughput));
    let all_round_trips = rounds.iter().flat_map(|round| &round.round_trips_ns).copied();
    let mut ratios = (BTreeMap::new(), BTreeMap::new());
    for cell in &measurement.cells {
        if cell.workload == workload && cell.executor != executor {
            let by = |figure: fn(&crate::measure::Round) -> f64| {
                let [ours, theirs] = [rounds, &cell.rounds].map(|rounds| rounds.iter().map(figure).collect::<Vec<_>>());
                ratio(&ours, &theirs)
            };
            ratios.0.extend(by(|round| round.throughput).map(|ratio| (cell.executor.name(), ratio)));
            ratios.1.extend(by(|round| round.p50_us()).map(|ratio| (cell.executor.name(), ratio)));
        }
    }
    // All rounds or none: a median over some of them would be one of something else.
    let over_rounds = |figure: fn(&crate::measure::Round) -> Option<f64>| {
        rounds.iter().map(figure).collect::<Option<Vec<_>>>().map(median)
    };
    Figures {
        throughput_per_s: throughput,
        throughput_range,
        spread: (throughput_range[1] - throughput_range[0]) / throughput,
        efficiency: ideal(measurement, executor, workload, workers).map(|ideal| throughput / ideal),
        p50_us: median(rounds.iter().map(crate::measure::Round::p50_us)),
        p50_range: range(rounds.iter().map(crate::measure::Round::p50_us)),
        p99_us: crate::measure::quantile_us(all_round_trips, 0.99),
        cpu_s_per_million: over_rounds(|round| round.cpu_s_per_million),
        peak_rss_mib: over_rounds(|round| round.peak_rss_mib),
        rounds: rounds.len(),
        tasks: rounds.first().map_or(0, |round| round.tasks),
        ratios: ratios.0,
        p50_ratios: ratios.1,
    }
}

/// How many tasks a second workers would finish that cost nothing themselves.
fn ideal(measurement: &Measurement, executor: Executor, workload: Workload, workers: usize) -> Option<f64> {
    let workers = if executor == Executor::Sequential { 1 } else { workers };
    // Waiting needs no core.
    let at_once = match workload.wait() {
        Some(_) => workers,
        None => workers.min(measurement.cores),
    };
    measurement.length(executor, workload).map(|length| at_once as f64 / length.as_secs_f64())
}

/// Of the first process pool that ran tasks of several lengths that the thread pool ran, too.
fn threshold(measurement: &Measurement) -> Option<Threshold> {
    costs(measurement).into_iter().find_map(|(executor, points)| Threshold::of(executor.name(), points))
}

/// What each process pool costs over the thread pool, by the length of a task in µs: 0.1 is 10 % more time for the same.
fn costs(measurement: &Measurement) -> Vec<(Executor, Vec<(f64, f64)>)> {
    let pools = [Executor::ProcessPoolSpawn, Executor::ProcessPoolForkServer];
    let lengths = [Workload::Cpu1us, Workload::Cpu10us, Workload::Cpu100us, Workload::Cpu1ms];
    let throughput = |executor, workload| {
        measurement.rounds(executor, workload).iter().map(|round| round.throughput).collect::<Vec<_>>()
    };
    let points = |pool| {
        lengths.into_iter().filter_map(move |workload| {
            let us = workload.cpu()?.as_secs_f64() * 1e6;
            Some((us, ratio(&throughput(Executor::ThreadPool, workload), &throughput(pool, workload))? - 1.0))
        })
    };
    pools.into_iter().map(|pool| (pool, points(pool).collect())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measure::{Cell, Round};

    /// Rounds of 1,000 tasks with these throughputs, whose round trips take a millionth of them in µs.
    fn cell(executor: Executor, workload: Workload, throughputs: &[f64]) -> Cell {
        let round = |throughput: &f64| Round {
            tasks: 1_000,
            throughput: *throughput,
            round_trips_ns: vec![(1e9 / throughput) as u64; 10],
            cpu_s_per_million: Some(1.0),
            peak_rss_mib: None,
        };
        Cell { executor, workload, rounds: throughputs.iter().map(round).collect(), left_out: None }
    }

    fn measurement(cells: Vec<Cell>, cores: usize) -> Measurement {
        let prime = [Some(Duration::from_micros(20)), Some(Duration::from_millis(1))];
        Measurement { cells, probes: vec![1.0], cores, seconds: 1.0, prime }
    }

    fn report(cells: Vec<Cell>) -> Report {
        Report::new(&measurement(cells, 2), 2, false)
    }

    const OURS: [Executor; 1] = [Executor::ThreadPool];

    fn of_ours(throughputs: &[f64]) -> Report {
        report(vec![cell(Executor::ThreadPool, Workload::NoOp, throughputs)])
    }

    #[test]
    fn figures_are_medians_with_ratios_to_each_peer() {
        let report = report(vec![
            cell(Executor::ThreadPool, Workload::Io1ms, &[1_000.0, 1_200.0, 800.0]),
            cell(Executor::Rayon, Workload::Io1ms, &[500.0, 600.0, 400.0]),
        ]);
        let figures = report.figures(Executor::ThreadPool, Workload::Io1ms).unwrap();
        assert_eq!((figures.throughput_per_s, figures.throughput_range), (1_000.0, [800.0, 1_200.0]));
        assert!((figures.spread - 0.4).abs() < 1e-9);
        assert_eq!(figures.efficiency, Some(0.5), "two workers could wait 2,000 times a second");
        assert_eq!(figures.ratios, BTreeMap::from([("rayon".to_owned(), 2.0)]));
        assert!((figures.p50_ratios["rayon"] - 0.5).abs() < 0.01);
        assert_eq!((figures.cpu_s_per_million, figures.peak_rss_mib), (Some(1.0), None));
    }

    #[test]
    fn what_a_plain_loop_could_do_is_its_ideal() {
        let ideal = |executor, workload| ideal(&measurement(Vec::new(), 4), executor, workload, 8).map(f64::round);
        assert_eq!(ideal(Executor::Sequential, Workload::Cpu1ms), Some(1_000.0));
        assert_eq!(ideal(Executor::Rayon, Workload::Cpu1ms), Some(4_000.0), "there are only 4 cores");
        assert_eq!(ideal(Executor::Rayon, Workload::Io1ms), Some(8_000.0), "waiting needs no core");
        assert_eq!(ideal(Executor::ThreadPool, Workload::AsyncWait), None);
        assert_eq!(ideal(Executor::Rayon, Workload::Prime), Some(200_000.0));
        assert_eq!(ideal(Executor::PythonProcessPool, Workload::Prime), Some(4_000.0), "Python takes longer for it");
    }

    #[test]
    fn slower_beyond_the_noise_is_a_regression() {
        let (then, now) = (of_ours(&[1_000.0, 1_050.0, 1_100.0]), of_ours(&[800.0, 820.0, 850.0]));
        let found = now.regressions(&then, &OURS).unwrap();
        assert_eq!(found.len(), 2, "throughput and round trip: {found:?}");
        assert!(found[0].contains("thread-pool, no-op") && found[0].contains("820"), "{found:?}");
        assert_eq!(then.regressions(&now, &OURS).unwrap(), [""; 0], "faster is no regression");
    }

    #[test]
    fn what_the_noise_or_the_tolerance_explains_is_no_regression() {
        let then = of_ours(&[1_000.0, 1_050.0, 1_100.0]);
        assert_eq!(of_ours(&[915.0, 910.0]).regressions(&then, &OURS).unwrap(), [""; 0], "less than a tenth");
        assert_eq!(of_ours(&[700.0]).regressions(&then, &OURS).unwrap(), [""; 0], "a single round");
        let mut unsteady = of_ours(&[800.0, 810.0]);
        assert_eq!(unsteady.regressions(&then, &OURS).unwrap().len(), 2);
        unsteady.noise.median = 1.3;
        assert_eq!(unsteady.regressions(&then, &OURS).unwrap(), [""; 0], "the machine was as slow");
        let noisy = of_ours(&[300.0, 400.0, 950.0]);
        assert_eq!(noisy.regressions(&then, &OURS).unwrap(), [""; 0], "one round was as fast as then");
    }

    #[test]
    fn peers_may_become_slower() {
        let [then, now] = [1_000.0, 100.0].map(|throughput| {
            let cells = [Executor::ThreadPool, Executor::Rayon].map(|executor| {
                let throughput = if executor == Executor::Rayon { throughput } else { 50.0 };
                cell(executor, Workload::NoOp, &[throughput])
            });
            report(cells.into())
        });
        assert_eq!(now.regressions(&then, &OURS).unwrap(), [""; 0]);
    }

    #[test]
    fn reports_that_have_nothing_in_common_are_not_compared() {
        let (mut then, now) = (of_ours(&[1_000.0]), of_ours(&[1_000.0]));
        assert!(now.regressions(&then, &[Executor::ProcessPoolSpawn]).is_err());
        then.workers = 4;
        let error = now.regressions(&then, &OURS).unwrap_err();
        assert!(error.to_string().contains("use --workers 4"), "{error}");
    }

    #[test]
    fn the_threshold_is_that_of_the_process_pool_over_the_thread_pool() {
        let cells = [(Workload::Cpu10us, 0.5), (Workload::Cpu1us, 0.1), (Workload::Cpu1ms, 1.0)];
        let cells = cells.into_iter().flat_map(|(workload, part)| {
            [
                cell(Executor::ThreadPool, workload, &[1_000.0]),
                cell(Executor::ProcessPoolForkServer, workload, &[1_000.0 * part]),
            ]
        });
        let threshold = report(cells.collect()).threshold.unwrap();
        assert_eq!(threshold.executor, "process-pool-forkserver");
        let (lengths, costs): (Vec<_>, Vec<_>) = threshold.points.iter().copied().unzip();
        assert_eq!((lengths, costs), (vec![1.0, 10.0, 1_000.0], vec![9.0, 1.0, 0.0]));
        assert!(threshold.task_us.is_some_and(|us| (10.0..1_000.0).contains(&us)));
        assert!(of_ours(&[1.0]).threshold.is_none());
    }

    #[test]
    fn the_best_peer_is_one_of_the_same_kind() {
        let cells = [
            (Executor::Sequential, 9_000.0),
            (Executor::ThreadPool, 1_000.0),
            (Executor::ProcessPoolSpawn, 300.0),
            (Executor::Rayon, 500.0),
            (Executor::RustyPool, 250.0),
            (Executor::Procspawn, 3.0),
            (Executor::PythonThreadPool, 2.0),
        ];
        let report = report(cells.map(|(executor, throughput)| cell(executor, Workload::NoOp, &[throughput])).into());
        assert_eq!(report.best_peer(Executor::ThreadPool, Workload::NoOp), Some((Executor::Rayon, 2.0)));
        assert_eq!(report.best_peer(Executor::ProcessPoolSpawn, Workload::NoOp), Some((Executor::Procspawn, 100.0)));
        let executors = cells.map(|(executor, _)| executor);
        let text = report.text(&executors, &[Workload::NoOp]);
        assert!(text.contains("2 × rayon") && text.contains("100 × procspawn"), "{text}");
        let order: Vec<_> = report.ranked(&executors, Workload::NoOp).iter().map(|row| row.0).collect();
        assert_eq!(order[..3], [Executor::Sequential, Executor::ThreadPool, Executor::Rayon]);
    }

    #[test]
    fn columns_with_nothing_in_them_are_not_shown() {
        let report = of_ours(&[1_000.0]);
        let table = report.table(&report.ranked(&OURS, Workload::NoOp), Workload::NoOp);
        assert_eq!(table[0], ["", "tasks/s", "p50", "p99", "CPU a task", "tasks", "rounds"]);
        assert_eq!(table[1][..4], ["thread-pool", "1000", "1 ms", "1 ms"]);
    }

    #[test]
    fn reasons_are_shown_once() {
        let reason =
            |executor| Cell { left_out: Some("it has no map".to_owned()), ..cell(executor, Workload::Map, &[]) };
        let report = report(vec![reason(Executor::Blocking), reason(Executor::TokioSpawn)]);
        let text = report.text(&[Executor::Blocking, Executor::TokioSpawn], &[Workload::Map]);
        assert!(text.contains("without blocking, tokio-spawn: it has no map"), "{text}");
        assert!(report.results.is_empty());
    }
}
