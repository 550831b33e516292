//! `--polite`: what `robots.txt` of an origin allows, by RFC 9309. It is asked for once and remembered, for as many
//! origins as fit.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use reqwest::{StatusCode, Url};
use texting_robots::Robot;
use tokio::sync::OnceCell;

use super::failure::Fault;
use crate::output::record::Kind;
use crate::request::Origin;

/// How much of a file counts. The RFC asks for no less.
pub(super) const LONGEST: usize = 500 * 1024;

/// In seconds: who asks for more distance between two requests than this doesn't want to be fetched by the thousand.
const LONGEST_DELAY: f32 = 60.0;

/// How many origins are remembered, and how long their files may be together.
const MOST: usize = 4096;
const MOST_BYTES: usize = 8 << 20;

/// The files of all origins.
#[derive(Debug)]
pub(super) struct Robots {
    /// What the program calls itself there: its user agent without the version.
    agent: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    rules: HashMap<Origin, Arc<OnceCell<Rules>>>,
    /// The oldest first.
    order: VecDeque<(Origin, usize)>,
    bytes: usize,
}

/// What an origin allows.
enum Rules {
    All,
    /// It can't be told, so nothing: why.
    Nothing(String),
    These(Box<Robot>),
}

/// What came of asking for the file.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Not more than [`LONGEST`] bytes.
    pub(super) text: Vec<u8>,
}

impl Robots {
    pub(super) fn new(user_agent: &str) -> Self {
        let agent = user_agent.split(['/', ' ']).next().unwrap_or_default().to_owned();
        Robots { agent, known: Mutex::default() }
    }

    /// Where the rules for a URL are.
    pub(super) fn place(url: &Url) -> Url {
        let mut place = url.clone();
        place.set_path("/robots.txt");
        place.set_query(None);
        place.set_fragment(None);
        let _ = place.set_username("");
        let _ = place.set_password(None);
        place
    }

    /// Whether a URL may be fetched. `ask` asks for the file: it runs once for each origin, and all who come meanwhile
    /// wait.
    pub(super) async fn permit<F>(&self, url: &Url, ask: impl FnOnce() -> F) -> Result<(), Fault>
    where
        F: Future<Output = Result<Answer, Fault>>,
    {
        let origin = Origin::of(url);
        let cell = self.known().rules.entry(origin.clone()).or_default().clone();
        let rules = cell
            .get_or_init(|| async {
                let answer = ask().await;
                self.remember(origin, answer.as_ref().map_or(0, |answer| answer.text.len()));
                self.read(answer)
            })
            .await;
        let denied = |message| Err(Fault::new(Kind::Robots, message));
        match rules {
            Rules::All => Ok(()),
            Rules::These(robot) if robot.delay.is_some_and(|delay| delay > LONGEST_DELAY || delay.is_nan()) => {
                denied(format!(
                    "robots.txt asks for more than {LONGEST_DELAY} s between two requests, which is as good as no \
                     (--polite)"
                ))
            }
            Rules::These(robot) if robot.allowed(url.as_str()) => Ok(()),
            Rules::These(_) => denied("robots.txt disallows it (--polite)".to_owned()),
            Rules::Nothing(why) => denied(format!("robots.txt can't be read, so nothing is allowed (--polite): {why}")),
        }
    }

    /// How long to wait between two requests to an origin, if it has said so by now.
    pub(super) fn delay(&self, origin: &Origin) -> Option<Duration> {
        let cell = self.known().rules.get(origin)?.clone();
        match cell.get()? {
            Rules::These(robot) => Duration::try_from_secs_f32(robot.delay?).ok(),
            Rules::All | Rules::Nothing(_) => None,
        }
    }

    fn read(&self, answer: Result<Answer, Fault>) -> Rules {
        let Answer { status, text } = match answer {
            Ok(answer) => answer,
            Err(fault) => return Rules::Nothing(fault.failure.message),
        };
        match status.as_u16() {
            200..300 => match Robot::new(&self.agent, &text) {
                Ok(robot) => Rules::These(Box::new(robot)),
                Err(error) => Rules::Nothing(error.to_string()),
            },
            // Too many redirects included.
            300..500 => Rules::All,
            _ => Rules::Nothing(Fault::status(status, &Default::default()).failure.message),
        }
    }

    /// Notes how much there is, and forgets the oldest when that is too much.
    fn remember(&self, origin: Origin, bytes: usize) {
        let mut known = self.known();
        known.bytes += bytes;
        known.order.push_back((origin, bytes));
        while known.order.len() > MOST || known.bytes > MOST_BYTES {
            let Some((oldest, bytes)) = known.order.pop_front() else { break };
            known.rules.remove(&oldest);
            known.bytes -= bytes;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rules::All => "All",
            Rules::Nothing(_) => "Nothing",
            Rules::These(_) => "These",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const TEXT: &str = "User-agent: *\nDisallow: /private\nAllow: /private/not\nCrawl-delay: 2.5\n\
                        User-agent: special\nDisallow: /\n";

    fn answer(status: u16, text: &str) -> Result<Answer, Fault> {
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), text: text.into() })
    }

    async fn permits(robots: &Robots, url: &str, answer: Result<Answer, Fault>) -> bool {
        robots.permit(&Url::parse(url).unwrap(), async || answer).await.is_ok()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn rules_are_those_for_this_program() {
        let robots = Robots::new("fetch/1.0 (polypool)");
        assert!(permits(&robots, "http://a/public", answer(200, TEXT)).await);
        assert!(!permits(&robots, "http://a/private/x", answer(200, "")).await);
        assert!(permits(&robots, "http://a/private/not", answer(200, "")).await);
        assert!(!permits(&Robots::new("Special/2"), "http://a/public", answer(200, TEXT)).await);
        assert_eq!(robots.delay(&Origin::of(&Url::parse("http://a/x").unwrap())), Some(Duration::from_millis(2500)));
        assert_eq!(robots.delay(&Origin::of(&Url::parse("http://b/x").unwrap())), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn missing_rules_allow_and_unreadable_ones_don_t() {
        let lost = || Err(Fault::new(Kind::Connect, "refused"));
        for (asked, expected) in
            [(answer(404, TEXT), true), (answer(500, ""), false), (lost(), false), (answer(302, ""), true)]
        {
            assert_eq!(permits(&Robots::new("fetch"), "http://a/", asked).await, expected);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_origin_is_asked_once() {
        let (robots, count) = (Robots::new("fetch"), AtomicUsize::new(0));
        let ask = |url: &'static str| {
            let (robots, count) = (&robots, &count);
            async move {
                let ask = async || {
                    count.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    answer(200, TEXT)
                };
                robots.permit(&Url::parse(url).unwrap(), ask).await.unwrap();
            }
        };
        futures_util::join!(
            ask("http://a/1"),
            ask("http://a/2"),
            ask("http://b/1"),
            ask("https://a/1"),
            ask("http://a:81/")
        );
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_oldest_are_forgotten() {
        let robots = Robots::new("fetch");
        for index in 0..MOST + 10 {
            permits(&robots, &format!("http://{index}.example/"), answer(404, "")).await;
        }
        assert_eq!(robots.known().rules.len(), MOST);
        let long = "#".repeat(LONGEST);
        for index in 0..40 {
            permits(&robots, &format!("http://long{index}.example/"), answer(200, &long)).await;
        }
        assert!(robots.known().bytes <= MOST_BYTES);
        assert!(robots.known().rules.len() <= MOST_BYTES / LONGEST);
    }

    #[test]
    fn the_place_of_the_rules_has_no_secrets() {
        let url = Url::parse("https://user:pass@a.example:81/x?y#z").unwrap();
        assert_eq!(Robots::place(&url).as_str(), "https://a.example:81/robots.txt");
    }
}
