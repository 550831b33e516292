//! The arithmetic: medians, spreads, ratios, when a machine was too noisy, and from which task length on processes are
//! nearly as cheap as threads.

use serde::{Deserialize, Serialize};

/// What a process may cost more than a thread and still be called nearly as cheap.
pub(crate) const CHEAP: f64 = 0.10;

/// What is cheaper than this is noise, and a logarithm has no zero.
pub(crate) const FLOOR: f64 = 0.01;

/// The median; of an even number, the mean of the two in the middle. NaN of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The smallest and the largest.
pub(crate) fn range(values: impl IntoIterator<Item = f64>) -> [f64; 2] {
    values.into_iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| [low.min(value), high.max(value)])
}

/// The median of the ratios of the rounds: what slows a round down slows both of its sides.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let rounds = ours.len().min(theirs.len());
    (rounds > 0).then(|| median(ours.iter().zip(theirs).map(|(a, b)| a / b)))
}

/// How steadily the machine ran: times of one and the same loop, taken all through the measurement, as multiples of the
/// best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Noise {
    pub(crate) median: f64,
    pub(crate) percentile_90: f64,
    pub(crate) too_noisy: bool,
    pub(crate) verdict: String,
}

impl Noise {
    pub(crate) fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let best = sorted.first().copied().unwrap_or(f64::NAN);
        let median = median(times.iter().copied()) / best;
        let percentile_90 = sorted.get((sorted.len() * 9 / 10).min(sorted.len().saturating_sub(1)));
        let percentile_90 = percentile_90.map_or(f64::NAN, |time| time / best);
        // The negation is true of NaN as well: nothing measured is nothing to rely on.
        let too_noisy = !(median <= 1.15 && percentile_90 <= 1.5);
        let facts = format!(
            "one and the same loop took {median:.2} times its best time in the median and {percentile_90:.2} times in \
             the slowest tenth"
        );
        let verdict = if too_noisy {
            format!("The machine was too noisy to rely on these figures: {facts}. Close what else runs, and repeat.")
        } else {
            format!("The machine was quiet enough: {facts}.")
        };
        Noise { median, percentile_90, too_noisy, verdict }
    }
}

/// What processes cost over threads, by the length of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Threshold {
    /// The process pool that is meant.
    pub(crate) executor: String,
    /// From this length on, in µs; 0 if already from the shortest, none if not even from the longest measured.
    pub(crate) task_us: Option<f64>,
    pub(crate) sentence: String,
    /// Lengths in µs, and what processes cost more: 0.1 is 10 %.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Threshold {
    /// Of points by ascending length; `None` when there are fewer than two.
    pub(crate) fn of(executor: String, points: Vec<(f64, f64)>) -> Option<Self> {
        let (&(shortest, _), &(longest, _)) = points.first().zip(points.last())?;
        if points.len() < 2 {
            return None;
        }
        let percent = CHEAP * 100.0;
        // Cheap means that all longer ones are, too.
        let (task_us, sentence) = match points.iter().rposition(|(_, cost)| *cost >= CHEAP) {
            None => (
                Some(0.0),
                format!(
                    "Processes cost less than {percent:.0} % over threads here from tasks of {} on, the shortest \
                     measured.",
                    length(shortest)
                ),
            ),
            Some(last) if last + 1 == points.len() => (
                None,
                format!(
                    "Processes cost {percent:.0} % or more over threads here, even for tasks of {}, the longest \
                     measured.",
                    length(longest)
                ),
            ),
            Some(last) => {
                let task_us = crossing(points[last], points[last + 1]);
                let sentence = format!(
                    "Processes cost less than {percent:.0} % over threads here from tasks of about {} on.",
                    length(task_us)
                );
                (Some(task_us), sentence)
            }
        };
        Some(Threshold { executor, task_us, sentence, points })
    }
}

/// Where the cost falls to [`CHEAP`], on a straight line between two points when both axes are logarithmic: what costs
/// the same for each task, whatever its length, makes such a line.
fn crossing((from, high): (f64, f64), (to, low): (f64, f64)) -> f64 {
    let way = (high / CHEAP).ln() / (high / low.max(FLOOR)).ln();
    from * (to / from).powf(way)
}

/// A time in µs, for reading.
pub(crate) fn length(us: f64) -> String {
    if us >= 1e6 {
        format!("{} s", short(us / 1e6))
    } else if us >= 1e3 {
        format!("{} ms", short(us / 1e3))
    } else if us >= 0.1 || us == 0.0 {
        format!("{} µs", short(us))
    } else {
        format!("{} ns", short(us * 1e3))
    }
}

/// A number with three digits or so, for reading.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        v if v >= 1e9 => format!("{} G", short(value / 1e9)),
        v if v >= 1e6 => format!("{} M", short(value / 1e6)),
        v if v >= 1e4 => format!("{} k", short(value / 1e3)),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}").trim_end_matches("00").trim_end_matches('.').to_owned(),
        v if v >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
        assert_eq!(range([2.0, 3.0, 1.0]), [1.0, 3.0]);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // The second round was ten times slower, for both; the ratio of the medians would be 2 / 10.
        assert_eq!(ratio(&[20.0, 2.0, 2.0], &[10.0, 1.0, 10.0]), Some(2.0));
        // A round that only one of them has is left out.
        assert_eq!(ratio(&[20.0, 2.0], &[10.0]), Some(2.0));
        assert_eq!(ratio(&[], &[1.0]), None);
    }

    #[test]
    fn a_steady_machine_is_quiet_and_an_unsteady_one_is_not() {
        let mut times = vec![1.0; 20];
        times[0] = 3.0;
        let noise = Noise::of(&times);
        assert!(!noise.too_noisy && noise.verdict.contains("quiet enough"), "{noise:?}");
        times[..5].fill(3.0);
        assert!(Noise::of(&times).too_noisy, "a quarter of the times is far off");
        let slow: Vec<_> = (0..20).map(|n| if n < 5 { 1.0 } else { 1.3 }).collect();
        assert!(Noise::of(&slow).too_noisy, "most times are off");
        assert!(Noise::of(&[]).too_noisy);
    }

    fn threshold(costs: &[f64]) -> Threshold {
        let points = [1.0, 10.0, 100.0, 1000.0].into_iter().zip(costs.iter().copied()).collect();
        Threshold::of("process-pool-spawn".to_owned(), points).unwrap()
    }

    #[test]
    fn the_threshold_lies_where_the_cost_falls_to_a_tenth() {
        let found = threshold(&[20.0, 2.0, 0.2, 0.02]);
        assert!((found.task_us.unwrap() - 200.0).abs() < 0.1, "each task costs 20 µs more: {found:?}");
        assert!(found.sentence.contains("tasks of about 200 µs on"), "{}", found.sentence);
        let found = threshold(&[20.0, 2.0, 0.2, -0.5]);
        assert!(found.task_us.is_some_and(|us| us > 100.0 && us < 200.0), "{found:?}");
    }

    #[test]
    fn a_length_that_is_cheap_by_chance_is_no_threshold() {
        let found = threshold(&[3.0, 0.05, 0.5, 0.05]);
        assert!(found.task_us.unwrap() > 100.0, "{found:?}");
    }

    #[test]
    fn cheap_from_the_start_and_never_cheap_are_said_so() {
        assert_eq!(threshold(&[0.05, 0.0, -0.1, 0.02]).task_us, Some(0.0));
        let never = threshold(&[3.0, 2.0, 1.0, 0.1]);
        assert_eq!(never.task_us, None);
        assert!(never.sentence.contains("even for tasks of 1 ms"), "{}", never.sentence);
        assert_eq!(Threshold::of(String::new(), vec![(1.0, 2.0)]), None, "one length says nothing");
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.25, 1.0, 12.0, 12.34, 999.6, 12_345.0, 4_400_000.0, 0.0886, 0.0002].map(short);
        assert_eq!(shown, ["0", "0.25", "1", "12", "12.3", "1000", "12.3 k", "4.40 M", "0.089", "2.0e-4"]);
        assert_eq!([0.0123, 12.0, 1_500.0, 2e6].map(length), ["12.3 ns", "12 µs", "1.50 ms", "2 s"]);
    }
}
