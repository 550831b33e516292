//! The plots of the HTML report, as SVG that stands inside of the page.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::executor::Executor;
use crate::report::Figures;
use crate::stats::{CHEAP, Threshold, length, short};

const WIDTH: u32 = 900;
const OURS: RGBColor = RGBColor(11, 92, 173);
const PEERS: RGBColor = RGBColor(110, 119, 129);
const GRID: RGBColor = RGBColor(216, 222, 228);
const FONT: &str = "sans-serif";

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
    let count = rows.len() as f64;
    draw(50 + 24 * u32::try_from(rows.len())?, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_right(30)
            .x_label_area_size(40)
            .y_label_area_size(190)
            .build_cartesian_2d((range[0] / 1.5..range[1] * 1.5).log_scale(), count..0.0)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_desc("tasks/s, more is better")
            .x_label_formatter(&|value| short(*value))
            .label_style((FONT, 14))
            .y_labels(0)
            .draw()
            .map_err(failed)?;
        for (index, (executor, figures)) in rows.iter().enumerate() {
            let color = if executor.is_ours() { OURS } else { PEERS };
            let y = index as f64 + 0.5;
            let [low, high] = figures.throughput_range;
            let median = figures.throughput_per_s;
            let line = PathElement::new([(low, y), (high, y)], color.stroke_width(4));
            chart.draw_series([line]).map_err(failed)?;
            chart.draw_series([Circle::new((median, y), 6, color.filled())]).map_err(failed)?;
            let (_, pixel) = chart.backend_coord(&(median, y));
            let style = (FONT, 14).into_text_style(area).color(&color);
            area.draw(&Text::new(executor.name(), (4, pixel - 7), style)).map_err(failed)?;
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
    // Below 1 % the difference is noise, and a logarithm has no zero.
    let floor = 0.01;
    let points: Vec<_> = threshold.points.iter().map(|(us, cost)| (*us, cost.max(floor))).collect();
    let top = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.5;
    draw(320, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(80)
            .build_cartesian_2d((shortest / 1.3..longest * 1.3).log_scale(), (floor / 1.2..top).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_desc("length of a task")
            .y_desc("cost over threads")
            .x_label_formatter(&|us| length(*us))
            .y_label_formatter(&|cost| format!("{} %", short(cost * 100.0)))
            .label_style((FONT, 14))
            .draw()
            .map_err(failed)?;
        let limit = [(shortest / 1.3, CHEAP), (longest * 1.3, CHEAP)];
        chart.draw_series(DashedLineSeries::new(limit, 6, 4, PEERS.stroke_width(2))).map_err(failed)?;
        chart.draw_series(LineSeries::new(points.iter().copied(), OURS.stroke_width(3))).map_err(failed)?;
        let dots = points.iter().map(|point| Circle::new(*point, 5, OURS.filled()));
        chart.draw_series(dots).map_err(failed)?;
        if let Some(us) = threshold.task_us.filter(|us| *us > 0.0) {
            let mark = PathElement::new([(us, floor / 1.2), (us, CHEAP)], OURS.stroke_width(1));
            chart.draw_series([mark]).map_err(failed)?;
        }
        Ok(())
    })
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
