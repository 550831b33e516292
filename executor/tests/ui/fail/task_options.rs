#[polypool::task(name = "")]
fn empty() {}

#[polypool::task(name = 3)]
fn number() {}

#[polypool::task(name)]
fn missing() {}

#[polypool::task("images::resize")]
fn bare() {}

#[polypool::task(name = "a", name = "b")]
fn twice() {}

#[polypool::task(nmae = "a", timeout = 3, , retries(2))]
fn unknown() {}

#[polypool::task(crate = "toolbox::polypool")]
fn quoted() {}

#[polypool::task(crate = 7)]
fn no_path() {}

macro_rules! task {
    () => {
        #[polypool::task(crate = $crate::polypool)]
        fn dollar() {}
    };
}
task!();

fn main() {}
