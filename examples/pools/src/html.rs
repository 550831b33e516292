//! The report as one HTML page: everything is in it, it needs no script, and it can be printed.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::executor::Executor;
use crate::plot;
use crate::report::{AGAINST_BEST, Report};
use crate::stats::Threshold;
use crate::workload::Workload;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin: 3rem 0 0.5rem; font-size: 1.25rem; }
h2 code { font-weight: 400; font-size: 0.85em; color: #57606a; margin-left: 0.5rem; } code { font-size: 0.95em; }
.answer { font-size: 1.35rem; font-weight: 600; line-height: 1.35; } .noisy { color: #a40e26; font-weight: 600; }
.note { color: #57606a; font-size: 0.9rem; margin: 0.3rem 0; } .key b { color: #005ea2; }
svg { width: 100%; height: auto; display: block; margin: 0.5rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.2rem 0.5rem; border-bottom: 1px solid #d8dee4; white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.ours td { font-weight: 600; color: #005ea2; } dt { font-weight: 600; float: left; margin-right: 0.5rem; }
dd { margin: 0 0 0.3rem; } .wide { overflow-x: auto; }
@media print {
  @page { margin: 15mm; }
  body { margin: 0; padding: 0; max-width: none; font-size: 10pt; } h2 { margin-top: 1.5rem; break-after: avoid; }
  section, tr, svg { break-inside: avoid; } .wide { overflow: visible; } table { font-size: 8pt; }
  * { print-color-adjust: exact; }
}
";

/// The page.
///
/// # Errors
/// When a plot can't be drawn.
pub(crate) fn page(report: &Report, executors: &[Executor], workloads: &[Workload]) -> Result<String> {
    let sections =
        workloads.iter().map(|workload| section(report, executors, *workload)).collect::<Result<Vec<_>>>()?;
    let threshold = report.threshold.as_ref().map(threshold).transpose()?;
    let best = against_best(report, executors, workloads)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "pools: threads, processes and their peers" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Threads, processes and their peers" }
                @if let Some(threshold) = &report.threshold { p .answer { (threshold.sentence) } }
                p .noisy[report.noise.too_noisy] { (report.noise.verdict) }
                p {
                    "Measured by " code { "pools " (report.version) } " of polypool with " (report.workers)
                    " workers on " (report.cores) " cores, " (report.system) ", in " (format!("{:.0}", report.seconds))
                    " s" @if report.quick { " (quick: good for ratios of 1.5 and more)" } "."
                }
                p .note .key {
                    "In all plots: ● threads, ■ processes; " b { "blue" } ": polypool, grey: its peers. A bar goes from \
                     the slowest to the fastest round, the mark is at the median."
                }
                @if let Some(threshold) = threshold { (threshold) }
                @if let Some(best) = best { (best) }
                @for section in sections { (section) }
                (how_to_read())
            }
        }
    };
    Ok(page.into_string())
}

fn threshold(threshold: &Threshold) -> Result<Markup> {
    let plot = plot::threshold(threshold)?;
    Ok(html! {
        section {
            h2 { "From which task length on are processes nearly as cheap as threads?" }
            (PreEscaped(plot))
            p .note { "Tasks that compute for so long, on " code { (threshold.executor) } " over " code { "thread-pool" } "." }
        }
    })
}

/// Our pools against the fastest of their peers, if there are both.
fn against_best(report: &Report, executors: &[Executor], workloads: &[Workload]) -> Result<Option<Markup>> {
    let table = report.against_best(executors, workloads);
    if table.is_empty() {
        return Ok(None);
    }
    let ours: Vec<_> = executors.iter().copied().filter(|executor| executor.is_ours()).collect();
    let rows = workloads.iter().filter_map(|workload| {
        let ratio = |pool: &Executor| report.best_peer(*pool, *workload).map(|(_, ratio)| (*pool, ratio));
        let ratios: Vec<_> = ours.iter().filter_map(ratio).collect();
        (!ratios.is_empty()).then(|| (workload.name(), ratios))
    });
    let plot = plot::against_best(&rows.collect::<Vec<_>>())?;
    Ok(Some(html! {
        section {
            h2 { (AGAINST_BEST) }
            (PreEscaped(plot))
            div .wide { (rows_of(&table, "words", |_| false)) }
        }
    }))
}

fn section(report: &Report, executors: &[Executor], workload: Workload) -> Result<Markup> {
    let rows = report.ranked(executors, workload);
    let plot = plot::throughput(&rows)?;
    let table = report.table(&rows, workload);
    Ok(html! {
        section {
            h2 { (workload.description()) code { (workload.name()) } }
            @if !rows.is_empty() {
                (PreEscaped(plot))
                div .wide { (rows_of(&table, "figures", |row| rows[row].0.is_ours())) }
            }
            @for (reason, executors) in report.reasons(workload) {
                p .note { "Without " (executors.join(", ")) ": " (reason) "." }
            }
        }
    })
}

/// A table, whose first row is the head.
fn rows_of(table: &[Vec<String>], class: &str, is_ours: impl Fn(usize) -> bool) -> Markup {
    let (head, rows) = table.split_first().expect("it has a head");
    html! {
        table class=(class) {
            thead { tr { @for cell in head { th { (cell) } } } }
            tbody {
                @for (index, row) in rows.iter().enumerate() {
                    tr .ours[is_ours(index)] { @for cell in row { td { (cell) } } }
                }
            }
        }
    }
}

fn how_to_read() -> Markup {
    let words = [
        (
            "tasks/s",
            "submitted one by one from one thread, and collected in that order; the median of the rounds, in \
          which the executors took turns.",
        ),
        ("GB/s", "what crossed to another process, in and out together. Threads hand a buffer over as it is."),
        ("spread", "the fastest round less the slowest, as a part of the median."),
        ("efficiency", "against workers that do nothing but the work of the tasks."),
        ("p50, p99", "there and back with one task, nothing else under way."),
        ("CPU a task", "of all processes, their waiting and polling included."),
        ("memory", "the largest resident sets of all processes, summed, with a round's tasks submitted at once."),
    ];
    html! {
        section {
            h2 { "How to read this" }
            dl .note { @for (word, meaning) in words { dt { (word) } dd { (meaning) } } }
        }
    }
}
