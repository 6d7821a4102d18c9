//! What a client costs: the same GET, again and again, over kept connections to a server on loopback.
//!
//! `clients serve` answers and prints its address; `clients ask CLIENT ADDRESS REQUESTS [LANES]` asks, each lane over
//! a connection of its own, all on one thread, and prints JSON: processor time and wall time a request. The lanes
//! that are not the first make it batch its work as a proxy's thread does.

mod clients;
mod serve;

use clients::{Client, Kind};
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;
use tokio::task::LocalSet;

/// Requests before the clock starts: connections are open then, and caches warm.
const WARM: u64 = 200;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve"] => Ok(serve::serve()?),
        ["ask", client, address, requests] => ask(client.parse()?, address.parse()?, requests.parse()?, 1),
        ["ask", client, address, requests, lanes] => {
            ask(client.parse()?, address.parse()?, requests.parse()?, lanes.parse()?)
        }
        _ => Err(format!(
            "usage: clients serve | clients ask CLIENT ADDRESS REQUESTS [LANES]\nclients: {}",
            Kind::names()
        )
        .into()),
    }
}

fn ask(kind: Kind, server: SocketAddr, requests: u64, lanes: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut clients = Vec::new();
        let shared = Client::open(kind, server).await?;
        for _ in 0..lanes {
            clients.push(shared.lane().await?);
        }
        let clients = every(clients, WARM).await?;
        let (cpu, wall) = (cpu_ns()?, Instant::now());
        let each = requests / lanes;
        every(clients, each).await?;
        let (cpu, wall) = (cpu_ns()? - cpu, wall.elapsed().as_nanos() as u64);
        let all = (each * lanes).max(1) as f64;
        println!(
            r#"{{"client": "{}", "lanes": {lanes}, "requests": {}, "cpu_us": {:.3}, "wall_us": {:.3}}}"#,
            kind.name(),
            each * lanes,
            cpu as f64 / all / 1e3,
            wall as f64 / all / 1e3
        );
        Ok(())
    })
}

/// Each client asks so many times; they come back.
async fn every(clients: Vec<Client>, requests: u64) -> Outcome<Vec<Client>> {
    let template = Rc::new(clients::headers());
    let lanes = clients.into_iter().map(|mut client| {
        let template = template.clone();
        tokio::task::spawn_local(async move {
            for _ in 0..requests {
                let got = client.get(&template).await.map_err(|error| error.to_string())?;
                if got != serve::BODY {
                    return Err(format!("{got} bytes came instead of {}", serve::BODY));
                }
            }
            Ok(client)
        })
    });
    let lanes: Vec<_> = lanes.collect();
    let mut back = Vec::new();
    for lane in lanes {
        back.push(lane.await??);
    }
    Ok(back)
}

/// Processor time of the only thread, in nanoseconds. Read from the kernel's file, because valgrind 3.19 does not survive
/// rustix looking for the clock.
fn cpu_ns() -> Outcome<u64> {
    let spent = std::fs::read_to_string("/proc/self/schedstat")?;
    Ok(spent.split(' ').next().ok_or("no time in schedstat")?.parse()?)
}
