//! The plots of the HTML report, as SVG that stands inside of the page.
//!
//! Nothing is told by colour alone: names and numbers stand beside the marks, threads are circles and processes squares.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::executor::Executor;
use crate::report::Figures;
use crate::stats::{CHEAP, FLOOR, Threshold, length, short};

const WIDTH: u32 = 900;
/// The colours of a palette that the colour-blind can tell apart, too; peers are grey.
const OURS: RGBColor = RGBColor(0, 94, 162);
const PEERS: RGBColor = RGBColor(98, 107, 117);
const GRID: RGBColor = RGBColor(216, 222, 228);
const TEXT: RGBColor = RGBColor(27, 31, 36);
const FONT: &str = "sans-serif";
const SIZE: i32 = 14;
/// How high the line of an executor or a workload is.
const ROW: u32 = 24;
/// How wide names are.
const NAMES: u32 = 190;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Tasks a second of each executor, with a bar from the slowest to the fastest round; on a logarithmic scale.
///
/// # Errors
/// When the plotting library fails.
pub(crate) fn throughput(rows: &[(Executor, &Figures)]) -> Result<String> {
    if rows.is_empty() {
        return Ok(String::new());
    }
    let range = crate::stats::range(rows.iter().flat_map(|(_, figures)| figures.throughput_range));
    let names: Vec<_> = rows.iter().map(|(executor, _)| (executor.name(), color(*executor))).collect();
    lines(&names, range, "tasks/s, logarithmic; more is better", short, None, |index| {
        let (executor, figures) = rows[index];
        vec![Mark {
            value: figures.throughput_per_s,
            range: figures.throughput_range,
            square: executor.has_processes(),
            color: color(executor),
            label: short(figures.throughput_per_s),
        }]
    })
}

/// How the throughputs of our pools compare with those of the fastest peers: for each workload so many times, of the
/// thread pool and of a process pool.
///
/// # Errors
/// When the plotting library fails.
pub(crate) fn against_best(rows: &[(String, Vec<(Executor, f64)>)]) -> Result<String> {
    if rows.is_empty() {
        return Ok(String::new());
    }
    let ratios = rows.iter().flat_map(|(_, pools)| pools.iter().map(|(_, ratio)| *ratio));
    let range = crate::stats::range(ratios.chain([0.5, 2.0]));
    let names: Vec<_> = rows.iter().map(|(name, _)| (name.clone(), TEXT)).collect();
    let axis = "times the throughput of the fastest peer, logarithmic; more is better";
    lines(&names, range, axis, times, Some(1.0), |index| {
        let marks = rows[index].1.iter().map(|(executor, ratio)| Mark {
            value: *ratio,
            range: [*ratio; 2],
            square: executor.has_processes(),
            color: OURS,
            label: String::new(),
        });
        marks.collect()
    })
}

fn times(ratio: f64) -> String {
    format!("{} ×", short(ratio))
}

fn color(executor: Executor) -> RGBColor {
    if executor.is_ours() { OURS } else { PEERS }
}

/// What stands in a line.
struct Mark {
    value: f64,
    range: [f64; 2],
    square: bool,
    color: RGBColor,
    /// Stands beside it.
    label: String,
}

/// A plot of named lines with marks in them, over a logarithmic axis; with a line where two are `even`.
fn lines(
    names: &[(String, RGBColor)],
    range: [f64; 2],
    axis: &str,
    number: fn(f64) -> String,
    even: Option<f64>,
    marks: impl Fn(usize) -> Vec<Mark>,
) -> Result<String> {
    let count = names.len() as f64;
    let [low, high] = [range[0] / 1.5, range[1] * 1.5];
    draw(50 + ROW * u32::try_from(names.len())?, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_right(70)
            .margin_top(4)
            .x_label_area_size(46)
            .y_label_area_size(NAMES)
            .build_cartesian_2d((low..high).log_scale(), count..0.0)
            .map_err(failed)?;
        let number = |value: &f64| number(*value);
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().disable_y_axis().light_line_style(WHITE).bold_line_style(GRID).axis_style(GRID);
        mesh.x_desc(axis).x_label_formatter(&number).label_style((FONT, SIZE, &TEXT)).y_labels(0);
        mesh.draw().map_err(failed)?;
        if let Some(even) = even {
            let line = PathElement::new([(even, 0.0), (even, count)], TEXT.stroke_width(1));
            chart.draw_series([line]).map_err(failed)?;
        }
        for (index, (name, color)) in names.iter().enumerate() {
            let y = index as f64 + 0.5;
            let (_, pixel) = chart.backend_coord(&(low, y));
            write(area, name, (4, pixel), *color)?;
            for mark in marks(index) {
                let bar = mark.range.map(|value| chart.backend_coord(&(value, y)));
                area.draw(&PathElement::new(bar, mark.color.stroke_width(4))).map_err(failed)?;
                let at = chart.backend_coord(&(mark.value, y));
                if mark.square {
                    square(area, at, mark.color)?;
                } else {
                    area.draw(&Circle::new(at, 6, mark.color.filled())).map_err(failed)?;
                }
                write(area, &mark.label, (bar[1].0 + 11, pixel), mark.color)?;
            }
        }
        Ok(())
    })
}

/// What processes cost over threads, by the length of a task, and the line below which they are cheap.
///
/// # Errors
/// When the plotting library fails.
pub(crate) fn threshold(threshold: &Threshold) -> Result<String> {
    let shortest = threshold.points.first().map_or(1.0, |point| point.0);
    let longest = threshold.points.last().map_or(1.0, |point| point.0);
    let points: Vec<_> = threshold.points.iter().map(|(us, cost)| (*us, cost.max(FLOOR))).collect();
    let top = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.8;
    let (left, right, bottom) = (shortest / 1.5, longest * 1.5, FLOOR / 1.3);
    draw(330, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(15)
            .margin_right(60)
            .x_label_area_size(46)
            .y_label_area_size(80)
            .build_cartesian_2d((left..right).log_scale(), (bottom..top).log_scale())
            .map_err(failed)?;
        let (x_label, y_label) = (|us: &f64| length(*us), |cost: &f64| percent(*cost));
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(WHITE).bold_line_style(GRID).axis_style(GRID).label_style((FONT, SIZE, &TEXT));
        mesh.x_desc("length of a task, logarithmic").x_label_formatter(&x_label);
        mesh.y_desc("time more than on threads").y_label_formatter(&y_label);
        mesh.draw().map_err(failed)?;
        let limit = [(left, CHEAP), (right, CHEAP)];
        chart.draw_series(DashedLineSeries::new(limit, 6, 4, TEXT.stroke_width(1))).map_err(failed)?;
        let (x, y) = chart.backend_coord(&(left, CHEAP));
        write(area, &format!("{} more", percent(CHEAP)), (x + 6, y + 11), TEXT)?;
        chart.draw_series(LineSeries::new(points.iter().copied(), OURS.stroke_width(3))).map_err(failed)?;
        if let Some(us) = threshold.task_us.filter(|us| *us > 0.0) {
            let mark = PathElement::new([(us, bottom), (us, CHEAP)], OURS.stroke_width(1));
            chart.draw_series([mark]).map_err(failed)?;
            let (x, y) = chart.backend_coord(&(us, bottom));
            write(area, &length(us), (x + 6, y - 10), OURS)?;
        }
        for (point, (_, cost)) in points.iter().zip(&threshold.points) {
            let (x, y) = chart.backend_coord(point);
            square(area, (x, y), OURS)?;
            let label = if *cost < FLOOR { format!("under {}", percent(FLOOR)) } else { percent(*cost) };
            write(area, &label, (x + 10, y - 12), OURS)?;
        }
        Ok(())
    })
}

fn percent(part: f64) -> String {
    format!("{} %", short(part * 100.0))
}

fn square(area: &Area<'_>, (x, y): (i32, i32), color: RGBColor) -> Result<()> {
    area.draw(&Rectangle::new([(x - 5, y - 5), (x + 5, y + 5)], color.filled())).map_err(failed)
}

/// Text from here on, whose middle is at this height.
fn write(area: &Area<'_>, text: &str, at: (i32, i32), color: RGBColor) -> Result<()> {
    let style = (FONT, SIZE).into_text_style(area).color(&color).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

fn draw(height: u32, what: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        what(&area)?;
        area.present().map_err(failed)?;
    }
    // Inside of a page the namespace goes without saying, and so the page has no address in it at all.
    Ok(svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", ""))
}

/// The library's errors borrow what they are about.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("can't draw a plot: {error}")
}
