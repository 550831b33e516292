use std::rc::Rc;

#[polypool::task]
async fn shared(n: u32) -> u32 {
    let shared = Rc::new(n);
    std::future::ready(()).await;
    *shared
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Config {
    #[serde(skip)]
    cache: Rc<u32>,
}

#[polypool::task]
fn configured(config: Config) -> u32 {
    *config.cache
}

fn main() {}
