//! Names whose addresses change, and targets that are drained.

use super::*;
use crate::demo::Demo;
use crate::state::tests::shared;
use crate::upstream::spec::tests::spec;
use crate::upstream::testing::{Scripted, eventually};
use crate::upstream::{SendOptions, Upstream};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use std::io;
use std::time::Duration;

/// A resolver that says what a test tells it to.
#[derive(Default)]
struct Told(Mutex<Option<Vec<IpAddr>>>);

impl Told {
    fn say(&self, ips: Option<&[&str]>) {
        let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        *self.0.lock().unwrap() = ips.map(parse);
    }
}

impl Resolve for Told {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        assert_eq!(host, "service.test");
        let said = self.0.lock().unwrap().clone();
        Box::pin(async move { said.ok_or_else(|| io::Error::other("no such name")) })
    }
}

async fn get(upstream: &Arc<Upstream>) -> Result<String, crate::error::Kind> {
    let exchange = crate::exchange::tests::exchange(Method::GET, "/");
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed();
    let request = Request::get("/").body(body).unwrap();
    let sent = upstream.send(&exchange, request, &SendOptions::default()).await;
    let answer = sent.map_err(|error| error.kind)?.into_body().collect().await.unwrap();
    Ok(String::from_utf8(answer.to_bytes().to_vec()).unwrap())
}

/// Says its name, on this address and this port, or one that is free.
async fn named(ip: &str, port: u16) -> Scripted {
    let name = ip.to_owned();
    Scripted::start_at(&format!("{ip}:{port}"), move |mut wire| {
        let name = name.clone();
        async move {
            while wire.request().await.is_ok() {
                wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
                    .await?;
            }
            Ok(())
        }
    })
    .await
}

#[tokio::test]
async fn a_name_goes_where_its_addresses_are() {
    let one = named("127.0.0.1", 0).await;
    let port = one.address.port();
    let (two, three) = (named("127.0.0.2", port).await, named("127.0.0.3", port).await);
    let told = Arc::new(Told::default());
    told.say(Some(&["127.0.0.1"]));
    let (shared, _close) = shared(&[]);
    let yaml =
        format!("{{ targets: [{{ url: \"http://service.test:{port}\" }}], resolve: {{ every: 20ms }} }}");
    let upstream = Upstream::with_resolver(spec(&yaml), &shared, told.clone());
    upstream.spawn_upkeep();
    let known = || {
        let servers = upstream.status().servers;
        servers.iter().flat_map(|server| server.resolved.clone()).collect::<Vec<_>>().join(" ")
    };
    let at = |ips: &[&str]| ips.iter().map(|ip| format!("{ip}:{port}")).collect::<Vec<_>>().join(" ");
    eventually(|| known() == at(&["127.0.0.1"])).await;
    assert_eq!(get(&upstream).await.unwrap(), "127.0.0.1");
    one.until_open(1).await;

    told.say(Some(&["127.0.0.3", "127.0.0.2"]));
    eventually(|| known() == at(&["127.0.0.2", "127.0.0.3"])).await;
    one.until_open(0).await;
    let mut answers = [get(&upstream).await.unwrap(), get(&upstream).await.unwrap()];
    answers.sort();
    assert_eq!(answers, ["127.0.0.2", "127.0.0.3"]);

    for nothing in [Some(&[][..]), None] {
        told.say(nothing);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(known(), at(&["127.0.0.2", "127.0.0.3"]), "what is not known any more stays");
    }
    told.say(Some(&["127.0.0.3"]));
    two.until_open(0).await;
    assert_eq!(get(&upstream).await.unwrap(), "127.0.0.3");
    assert_eq!(three.accepted(), 1, "who stays keeps its connections");
}

#[test]
fn a_targets_share_is_its_addresses_together() {
    let told: Arc<dyn Resolve> = Arc::new(Told::default());
    let yaml = "{ targets: [{ url: \"http://service.test\", weight: 3 }, { url: \"http://10.0.0.9\" }] }";
    let (shared, _close) = shared(&[]);
    let spec = spec(yaml);
    let cluster = Cluster::new(spec, &shared, told);
    let ips = ["10.0.0.1", "10.0.0.2"].map(|ip| vec![ip.parse().unwrap()]);
    let (came, went) = cluster.resolved(&HashMap::from([(0, ips.to_vec())]));
    assert_eq!(came, ["service.test:80 (10.0.0.1)", "service.test:80 (10.0.0.2)"]);
    assert_eq!(went, ["service.test:80"]);
    let mut counts = [0; 3];
    for _ in 0..80 {
        let chosen = cluster.choose(None, &[]).unwrap();
        let view = cluster.view();
        counts[view.servers.iter().position(|server| Arc::ptr_eq(server, &chosen)).unwrap()] += 1;
    }
    assert_eq!(counts, [30, 30, 20]);
    assert_eq!(cluster.resolved(&HashMap::from([(0, ips.to_vec())])), (vec![], vec![]), "nothing changed");
}

#[tokio::test]
async fn a_drained_target_ends_what_it_has_and_gets_nothing_new() {
    let (one, two) = (Demo::start().await.unwrap(), Demo::start().await.unwrap());
    let yaml = format!("{{ targets: [{{ url: \"{}\" }}, {{ url: \"{}\" }}] }}", one.url(), two.url());
    let (shared, _close) = shared(&[]);
    let upstream = Upstream::new(spec(&yaml), &shared);
    for _ in 0..4 {
        get(&upstream).await.unwrap();
    }
    let address = one.url().trim_start_matches("http://").to_owned();
    assert_eq!(upstream.cluster.drain("nobody:1", true), None);
    assert_eq!(upstream.cluster.drain(&address, true), Some(0));
    eventually(|| one.stats().connections.open == 0).await;
    let before = one.stats().requests;
    for _ in 0..4 {
        get(&upstream).await.unwrap();
    }
    assert_eq!((one.stats().requests, two.stats().requests), (before, 6));
    let status = upstream.status();
    assert!(status.servers[0].drained && status.available);
    let other = two.url().trim_start_matches("http://").to_owned();
    upstream.cluster.drain(&other, true);
    assert_eq!(get(&upstream).await, Err(crate::error::Kind::UpstreamSaturated));
    upstream.cluster.drain(&address, false);
    get(&upstream).await.unwrap();
    assert_eq!(one.stats().requests, before + 1);
}
