//! A task is registered under the path of its function, or under the name it is given.
#![forbid(unsafe_code)]
#![deny(warnings)]

use polypool::Task;

mod images {
    #[polypool::task]
    pub fn resize(width: u32) -> u32 {
        width / 2
    }

    #[polypool::task(name = "images, turned")]
    pub fn turn(degrees: u32) -> u32 {
        degrees + 90
    }
}

#[polypool::task()]
fn resize(width: u32) -> u32 {
    width / 4
}

fn main() {
    #[polypool::task]
    fn local(n: u8) -> u8 {
        n
    }

    assert_eq!(images::resize::NAME, concat!(module_path!(), "::images::resize"));
    assert_eq!(images::turn::NAME, "images, turned");
    assert_eq!(resize::NAME, concat!(module_path!(), "::resize"));
    assert_eq!(local::NAME, concat!(module_path!(), "::local"));
    let calls = (images::resize { width: 4 }, images::turn { degrees: 4 }, resize { width: 4 }, local { n: 4 });
    assert_eq!(format!("{calls:?}"), "(resize { .. }, turn { .. }, resize { .. }, local { .. })");
    assert_eq!((images::resize(4), images::turn(4), resize(4), local(4)), (2, 94, 1, 4));

    let registered = format!("{:?}", polypool::__private::TASKS.iter().collect::<Vec<_>>());
    for name in [images::resize::NAME, images::turn::NAME, resize::NAME, local::NAME] {
        assert!(registered.contains(&format!("{name:?}")), "{name} is missing in {registered}");
    }
}
