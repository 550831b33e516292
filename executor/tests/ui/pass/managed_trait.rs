//! A managed trait, its options, and types that implement it, in a crate that re-exports polypool.
#![forbid(unsafe_code)]
#![deny(warnings)]

mod toolbox {
    pub use ::polypool as pools;
}

mod shop {
    /// What can be filled.
    #[crate::toolbox::pools::managed(crate = crate::toolbox::pools, proxy = Gauge)]
    pub(crate) trait Vessel: Sized {
        const CAPACITY: f64;

        fn empty() -> Self;

        fn filled(level: f64) -> Result<Self, String>;

        /// Returns the new level.
        fn pour(&mut self, litres: f64, note: Option<String>) -> f64;

        fn r#type(&self) -> String {
            format!("something for {}", self.with(|level| level))
        }

        #[managed(skip)]
        fn with<R>(&self, look: impl FnOnce(f64) -> R) -> R;

        fn capacity() -> f64 {
            Self::CAPACITY
        }
    }
}

use shop::Vessel;
use toolbox::pools::manager::{Manager, Proxy as _};

/// Not data, and without `Clone`.
struct Tank(std::sync::Mutex<f64>);

#[toolbox::pools::managed(crate = toolbox::pools, name = "tank, second edition", proxy = Gauge)]
impl shop::Vessel for Tank {
    const CAPACITY: f64 = 9.0;

    fn empty() -> Self {
        Tank(0.0.into())
    }

    fn filled(level: f64) -> Result<Self, String> {
        if level < 0.0 { Err("it leaks".to_owned()) } else { Ok(Tank(level.into())) }
    }

    fn pour(&mut self, litres: f64, _: Option<String>) -> f64 {
        *self.0.get_mut().unwrap() += litres;
        self.with(|level| level)
    }

    fn with<R>(&self, look: impl FnOnce(f64) -> R) -> R {
        look(*self.0.lock().unwrap())
    }
}

/// Of no manager but one in the same process.
struct Bottle;

impl Vessel for Bottle {
    const CAPACITY: f64 = 1.0;

    fn empty() -> Self {
        Bottle
    }

    fn filled(_: f64) -> Result<Self, String> {
        Ok(Bottle)
    }

    fn pour(&mut self, litres: f64, _: Option<String>) -> f64 {
        litres
    }

    fn r#type(&self) -> String {
        "bottle".to_owned()
    }

    fn with<R>(&self, look: impl FnOnce(f64) -> R) -> R {
        look(1.0)
    }
}

fn main() {
    assert_eq!(
        shop::Gauge::schema(),
        "trait Vessel { empty() -> Self; filled(level: f64) -> Self; pour(&mut self, litres: f64, note: Option<String>) -> f64; \
         type(&self) -> String }"
    );
    let manager = Manager::in_thread().unwrap();
    let tank = shop::Gauge::filled::<Tank>(&manager, 1.0).wait().unwrap();
    assert_eq!(tank.pour(2.0, None).wait().unwrap(), 3.0);
    assert_eq!(tank.r#type().wait().unwrap(), "something for 3");
    assert!(shop::Gauge::filled::<Tank>(&manager, -1.0).wait().unwrap_err().to_string().ends_with("it leaks"));
    let vessels = [shop::Gauge::empty::<Tank>(&manager).wait().unwrap(), shop::Gauge::host(&manager, Bottle).unwrap()];
    let types = vessels.map(|vessel| vessel.r#type().wait().unwrap());
    assert_eq!(types, ["something for 0", "bottle"]);
    assert_eq!((Tank::capacity(), Bottle::capacity()), (9.0, 1.0));
}
