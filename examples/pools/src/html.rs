//! The report as one HTML page: everything is in it, it needs no script, and it can be printed.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::executor::Executor;
use crate::plot;
use crate::report::{COLUMNS, Figures, Report};
use crate::workload::Workload;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.2rem; } code { font-size: 0.95em; }
.answer { font-size: 1.2rem; font-weight: 600; } .noisy { color: #a40e26; font-weight: 600; }
.note { color: #57606a; font-size: 0.9rem; margin: 0.2rem 0; }
svg { max-width: 100%; height: auto; display: block; margin: 0.5rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.2rem 0.5rem; border-bottom: 1px solid #d8dee4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .ours td { font-weight: 600; color: #0b5cad; }
.wide { overflow-x: auto; }
@media print {
  body { margin: 0; max-width: none; font-size: 10pt; } section { break-inside: avoid; } .wide { overflow: visible; }
}
";

/// The page.
///
/// # Errors
/// When a plot can't be drawn.
pub(crate) fn page(report: &Report, executors: &[Executor], workloads: &[Workload]) -> Result<String> {
    let sections =
        workloads.iter().map(|workload| section(report, executors, *workload)).collect::<Result<Vec<_>>>()?;
    let threshold = report.threshold.as_ref().map(|threshold| Ok((threshold, plot::threshold(threshold)?)));
    let threshold = threshold.transpose().map_err(|error: anyhow::Error| error)?;
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
                p {
                    "Measured by " code { "pools " (report.version) } " of polypool with " (report.workers)
                    " workers on " (report.cores) " cores, " (report.system) ", in " (format!("{:.0}", report.seconds))
                    " s" @if report.quick { " (quick: good for ratios of 1.5 and more)" } "."
                }
                p .noisy[report.noise.too_noisy] { (report.noise.verdict) }
                @if let Some((threshold, plot)) = &threshold {
                    section {
                        h2 { "From which task length on are processes nearly as cheap as threads?" }
                        p .answer { (threshold.sentence) }
                        (PreEscaped(plot))
                        p .note { "Of " code { (threshold.executor) } " over " code { "thread-pool" } "." }
                    }
                }
                @for section in sections { (section) }
                h2 { "How to read this" }
                p .note {
                    "Figures are medians over rounds in which the executors took turns. Spread: the fastest round less the \
                     slowest, as a part of the median; a plot shows it as a bar. Efficiency: against workers that do \
                     nothing but the work of the tasks. p50 and p99: a round trip with nothing else under way. CPU s/M: \
                     CPU seconds of all processes for a million tasks. Peak MiB: the largest resident sets of all \
                     processes, with a round's tasks submitted at once."
                }
            }
        }
    };
    Ok(page.into_string())
}

fn section(report: &Report, executors: &[Executor], workload: Workload) -> Result<Markup> {
    let rows: Vec<(Executor, &Figures)> =
        executors.iter().filter_map(|executor| Some((*executor, report.figures(*executor, workload)?))).collect();
    let plot = plot::throughput(&rows)?;
    Ok(html! {
        section {
            h2 { (workload.name()) ": " (workload.description()) }
            @if !rows.is_empty() {
                (PreEscaped(plot))
                div .wide {
                    table {
                        tr { @for column in COLUMNS { th { (column) } } }
                        @for (executor, figures) in &rows {
                            tr .ours[executor.is_ours()] {
                                td { (executor.name()) }
                                @for cell in figures.cells() { td { (cell) } }
                            }
                        }
                    }
                }
            }
            @for (reason, executors) in report.reasons(workload) {
                p .note { "Without " (executors.join(", ")) ": " (reason) "." }
            }
        }
    })
}
