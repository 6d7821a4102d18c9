//! Telemetry as a whole: the exact names outsiders see, bounded labels, access lines, spans at a collector.

use super::logs::AccessLevels;
use super::testing::access;
use super::*;
use crate::error::grpc::Code;
use crate::error::{Kind, Lang};
use crate::exchange::{Arrival, End, UpstreamNote};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use std::net::SocketAddr;
use std::time::SystemTime;

fn route(template: &str) -> Arc<RouteInfo> {
    Arc::new(RouteInfo {
        method: "GET".into(),
        template: template.into(),
        host: None,
        version: Some("v01".into()),
        params: Vec::new(),
    })
}

fn exchange(method: &str, path: &str) -> Arc<Exchange> {
    Exchange::begin(Arrival {
        peer: SocketAddr::from(([127, 0, 0, 1], 40000)),
        client_ip: "203.0.113.9".parse().unwrap(),
        secure: true,
        method: Method::from_bytes(method.as_bytes()).unwrap(),
        path: path.to_owned(),
        lang: Lang::En,
    })
}

/// The lines of one metric, without comments.
fn lines_of<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let behind = |line: &'t str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    text.lines().filter(|line| behind(line)).collect()
}

#[test]
fn requests_have_the_names_of_the_contract() {
    let telemetry = Telemetry::default();
    let metrics = telemetry.route(&route("/api/v01/sessions/:id"));
    metrics.record(&Method::GET, 200, Duration::from_millis(3));
    metrics.record(&Method::GET, 200, Duration::from_millis(40));
    metrics.record(&Method::GET, 404, Duration::from_secs(100));
    telemetry.route(&route("unmatched")).record(&Method::POST, 404, Duration::from_micros(100));
    let text = telemetry.render();
    assert_eq!(
        lines_of(&text, "http_requests_total"),
        [
            r#"http_requests_total{method="GET",path="/api/v01/sessions/:id",status="200"} 2"#,
            r#"http_requests_total{method="GET",path="/api/v01/sessions/:id",status="404"} 1"#,
            r#"http_requests_total{method="POST",path="unmatched",status="404"} 1"#,
        ]
    );
    assert!(text.contains("# TYPE http_requests_total counter\n"));
    assert!(text.contains("# TYPE http_request_duration_seconds histogram\n"));
    let of = r#"method="GET",path="/api/v01/sessions/:id""#;
    for line in [
        format!(r#"http_request_duration_seconds_bucket{{{of},le="0.0025"}} 0"#),
        format!(r#"http_request_duration_seconds_bucket{{{of},le="0.005"}} 1"#),
        format!(r#"http_request_duration_seconds_bucket{{{of},le="0.05"}} 2"#),
        format!(r#"http_request_duration_seconds_bucket{{{of},le="120"}} 3"#),
        format!(r#"http_request_duration_seconds_count{{{of}}} 3"#),
    ] {
        assert!(text.lines().any(|have| have == line), "{line}\n{text}");
    }
    assert!(!text.contains("otel_scope"), "{text}");
}

#[test]
fn labels_are_bounded_whatever_callers_send() {
    let telemetry = Telemetry::default();
    let unmatched = telemetry.route(&route("unmatched"));
    for n in 0..100 {
        let exchange = exchange(&format!("BREW{n}"), &format!("/raw/{n}"));
        exchange.set_status(404);
        exchange.observe(unmatched.clone());
    }
    let text = telemetry.render();
    assert_eq!(
        lines_of(&text, "http_requests_total"),
        [r#"http_requests_total{method="OTHER",path="unmatched",status="404"} 100"#]
    );
    assert!(!text.contains("/raw/"));
}

#[test]
fn counters_survive_the_table_that_made_them() {
    let telemetry = Telemetry::default();
    let first = telemetry.route(&route("/a"));
    let second = telemetry.route(&route("/a"));
    assert!(Arc::ptr_eq(&first, &second));
    first.record(&Method::GET, 200, Duration::ZERO);
    drop((first, second));
    telemetry.route(&route("/a")).record(&Method::GET, 200, Duration::ZERO);
    let text = telemetry.render();
    let counted = r#"http_requests_total{method="GET",path="/a",status="200"} 2"#;
    assert_eq!(lines_of(&text, "http_requests_total"), [counted]);
}

#[test]
fn counting_from_many_threads_loses_nothing() {
    let telemetry = Telemetry::default();
    let metrics = telemetry.route(&route("/busy"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..10_000u16 {
                    metrics.record(&Method::GET, 200 + n % 100, Duration::from_millis(1));
                }
            });
        }
        scope.spawn(|| (0..20).for_each(|_| _ = telemetry.render()));
    });
    let text = telemetry.render();
    let counts = lines_of(&text, "http_requests_total");
    assert_eq!(counts.len(), 100);
    assert!(counts.iter().all(|line| line.ends_with(" 400")), "{counts:?}");
    assert!(text.contains(r#"http_request_duration_seconds_count{method="GET",path="/busy"} 40000"#));
}

#[test]
fn ten_thousand_routes_are_told_apart() {
    let telemetry = Telemetry::default();
    let routes: Vec<_> = (0..10_000).map(|n| telemetry.route(&route(&format!("/r/{n}")))).collect();
    let streams: Vec<_> = (0..10_000).map(|n| telemetry.streams(&route(&format!("/s/{n}")))).collect();
    for metrics in &routes {
        metrics.record(&Method::GET, 200, Duration::ZERO);
    }
    drop(streams[0].open());
    let text = telemetry.render();
    assert_eq!(lines_of(&text, "http_requests_total").len(), 10_000);
    assert_eq!(lines_of(&text, "voicegate_streams_open").len(), 10_000);
    assert!(!text.contains("overflow"));
}

#[test]
fn streams_upstreams_reloads_and_connections_are_shown() {
    let telemetry = Telemetry::default();
    let streams = telemetry.streams(&route("/chat"));
    let still_open = streams.open();
    still_open.events(2);
    still_open.events(0);
    let mut over = streams.open();
    over.ended(End::Complete);
    drop(over);
    drop(streams.open());

    let upstream = telemetry.upstream("algo");
    let target = upstream.target("algo:8000");
    target.answered(200, Duration::from_millis(7));
    target.answered(503, Duration::from_millis(7));
    target.failed(Kind::UpstreamTimeout);
    target.set_endpoints([0, 1, 0, 0, 1, 0]);
    target.ejected("slow");
    upstream.set_panicking(true);
    target.idle.set(3);
    let _busy = target.active.hold();

    telemetry.reload_failed();
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
    telemetry.reloads.succeeded(7, Duration::from_millis(250), at);
    let _caller = telemetry.connections().hold();

    let text = telemetry.render();
    for line in [
        r#"voicegate_streams_open{path="/chat"} 1"#,
        r#"voicegate_stream_events_total{path="/chat"} 2"#,
        r#"voicegate_streams_ended_total{end="complete",path="/chat"} 1"#,
        r#"voicegate_streams_ended_total{end="client_left",path="/chat"} 1"#,
        r#"voicegate_upstream_requests_total{result="2xx",target="algo:8000",upstream="algo"} 1"#,
        r#"voicegate_upstream_requests_total{result="5xx",target="algo:8000",upstream="algo"} 1"#,
        r#"voicegate_upstream_requests_total{result="upstream_timeout",target="algo:8000",upstream="algo"} 1"#,
        r#"voicegate_upstream_duration_seconds_count{upstream="algo"} 2"#,
        r#"voicegate_upstream_endpoints{state="down",target="algo:8000",upstream="algo"} 1"#,
        r#"voicegate_upstream_endpoints{state="taking",target="algo:8000",upstream="algo"} 0"#,
        r#"voicegate_upstream_ejections_total{reason="slow",target="algo:8000",upstream="algo"} 1"#,
        r#"voicegate_upstream_panic{upstream="algo"} 1"#,
        r#"voicegate_upstream_connections{state="active",target="algo:8000",upstream="algo"} 1"#,
        r#"voicegate_upstream_connections{state="idle",target="algo:8000",upstream="algo"} 3"#,
        r#"voicegate_upstream_healthy{target="algo:8000",upstream="algo"} 0"#,
        r#"voicegate_config_reloads_total{result="success"} 1"#,
        r#"voicegate_config_reloads_total{result="failure"} 1"#,
        "voicegate_config_revision 7",
        "voicegate_config_last_success_timestamp_seconds 1700000000.5",
        "voicegate_config_load_seconds 0.25",
        "voicegate_config_healthy 1",
        "voicegate_connections_open 1",
        "voicegate_log_lines_dropped_total 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}\n{text}");
    }

    telemetry.reload_failed();
    assert!(telemetry.render().contains("\nvoicegate_config_healthy 0\n"));
    telemetry.reload_recovered();
    assert!(telemetry.render().contains("\nvoicegate_config_healthy 1\n"));

    drop((target, upstream));
    let text = telemetry.render();
    assert!(!text.contains("voicegate_upstream_healthy{"), "gauges of an upstream that is gone go");
    assert_eq!(lines_of(&text, "voicegate_upstream_requests_total").len(), 3, "its counters stay");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_process_is_shown() {
    let telemetry = Telemetry::default();
    let task = tokio::spawn(std::future::pending::<()>());
    let text = telemetry.render();
    let value = |name: &str| -> f64 {
        let lines = lines_of(&text, name);
        assert_eq!(lines.len(), 1, "{name}\n{text}");
        lines[0].rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_cpu_seconds_total") >= 0.0);
    assert_eq!(value("tokio_tasks_alive"), 1.0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "{age}");
    assert!(text.contains("# TYPE process_cpu_seconds_total counter"));
    task.abort();
}

const ALL: AccessLevels = AccessLevels { info: true, warn: true };

/// An exchange that went to an upstream, and whose caller tries to forge lines.
fn told(log: AccessLog) {
    let exchange = exchange("POST", "/api/v01/chat/%0a\u{1b}[31m\"x");
    exchange.adopt_request_id("req-1\n\"".into());
    exchange.set_trace(Arc::new(
        TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap(),
    ));
    exchange.matched(route("/api/v01/chat/:x").into(), Vec::new());
    exchange.set_status(200);
    exchange.add_bytes_in(10);
    exchange.add_bytes_out(2000);
    exchange.sent_to(UpstreamNote { upstream: "algo".into(), target: "algo:8000".into() });
    exchange.upstream_answered(Duration::from_micros(1500));
    exchange.ended(End::Complete);
    exchange.observe(Arc::new(log));
}

#[test]
fn an_access_line_says_it_all_in_json() {
    let text = access(true, ALL, told);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.contains('\u{1b}'));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "time",
            "level",
            "target",
            "request_id",
            "trace_id",
            "client",
            "method",
            "route",
            "path",
            "version",
            "status",
            "end",
            "bytes_in",
            "bytes_out",
            "duration_ms",
            "first_byte_ms",
            "upstream",
            "upstream_target",
            "upstream_ms",
        ]
    );
    assert_eq!(line["level"], "info");
    assert_eq!(line["target"], "access");
    assert_eq!(line["request_id"], "req-1\n\"");
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(line["client"], "203.0.113.9");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["route"], "/api/v01/chat/:x");
    assert_eq!(line["path"], "/api/v01/chat/%0a\u{1b}[31m\"x");
    assert_eq!(line["version"], "v01");
    assert_eq!(line["status"], 200);
    assert_eq!(line["end"], "complete");
    assert_eq!(line["bytes_in"], 10);
    assert_eq!(line["bytes_out"], 2000);
    assert!(line["duration_ms"].as_f64().unwrap() < 60_000.0);
    assert_eq!(line["upstream_ms"], 1.5);
    assert_eq!(line["upstream_target"], "algo:8000");
    let time = line["time"].as_str().unwrap();
    assert_eq!(time.len(), "2026-01-01T00:00:00.000Z".len());
    time.parse::<jiff::Timestamp>().unwrap();
}

#[test]
fn an_access_line_without_a_route_says_so() {
    let text = access(true, ALL, |log| exchange("GET", "/nowhere").observe(Arc::new(log)));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(line["route"].is_null() && line.as_object().unwrap().contains_key("route"));
    assert_eq!(line["status"], 499);
    assert_eq!(line["end"], "client_left");
    assert!(line["request_id"].as_str().unwrap().len() == 36);
    assert!(line.get("upstream").is_none());
}

#[test]
fn an_access_line_for_people() {
    let text = access(false, ALL, told);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.contains('\u{1b}'));
    assert!(text.contains("  INFO access: POST /api/v01/chat/%0a\\u{1b}[31m\"x 200 "), "{text}");
    assert!(
        text.contains(" upstream=algo upstream_target=algo:8000 upstream_ms=1.500 request_id=req-1\\n\" ")
    );
}

#[test]
fn a_call_has_its_own_status_and_is_a_fault_by_it() {
    let call = |code: Code| {
        move |log: AccessLog| {
            let exchange = exchange("POST", "/a.B/C");
            exchange.set_status(200);
            exchange.set_grpc_status(code);
            exchange.observe(Arc::new(log));
        }
    };
    let line = |code| -> serde_json::Value { serde_json::from_str(&access(true, ALL, call(code))).unwrap() };
    let missing = line(Code::NotFound);
    assert_eq!((missing["status"].as_u64(), missing["grpc_status"].as_u64()), (Some(200), Some(5)));
    assert_eq!(missing["level"], "info");
    let dead = line(Code::Unavailable);
    assert_eq!((dead["level"].as_str(), dead["grpc_status"].as_u64()), (Some("warn"), Some(14)));
    assert!(access(false, ALL, call(Code::Ok)).contains(" POST /a.B/C 200 grpc=0 "));
}

#[test]
fn the_filter_can_leave_only_faults() {
    let text = access(true, AccessLevels { info: false, warn: true }, |log| {
        let log = Arc::new(log);
        for status in [200, 404, 502] {
            let exchange = exchange("GET", "/");
            exchange.set_status(status);
            exchange.observe(log.clone());
        }
    });
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("\"level\":\"warn\"") && text.contains("\"status\":502"), "{text}");
}

#[test]
fn a_trace_is_continued_or_begun() {
    let telemetry = Telemetry::default();
    let one = exchange("GET", "/");
    let mut headers = HeaderMap::new();
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    headers.insert(trace::TRACEPARENT, HeaderValue::from_static(theirs));
    assert!(telemetry.trace(&headers, &one));
    let ours = one.trace().unwrap().traceparent();
    assert!(ours.to_str().unwrap().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert!(ours.to_str().unwrap().ends_with("-00"), "an unsampled trace stays unsampled");
    assert_ne!(ours, theirs);

    headers.insert(trace::TRACEPARENT, HeaderValue::from_static("00-nonsense"));
    let two = exchange("GET", "/");
    assert!(!telemetry.trace(&headers, &two));
    assert_ne!(two.trace().unwrap().trace_id(), one.trace().unwrap().trace_id());
}

#[test]
fn export_is_asked_for_by_the_standard_variables() {
    let ask = |pairs: &[(&str, &str)]| {
        let env = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        export::endpoint(&env).map_err(|error| error.to_string())
    };
    let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:4318/in");
    assert_eq!(ask(&[]), Ok(None));
    assert_eq!(ask(&[base]), Ok(Some("http://collector:4318/v1/traces".into())));
    assert_eq!(ask(&[base, own]), Ok(Some("http://other:4318/in".into())));
    assert_eq!(ask(&[base, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
    assert_eq!(ask(&[base, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
    for bad in ["collector:4318", "http//me:hush@collector", "::"] {
        let error = ask(&[("OTEL_EXPORTER_OTLP_ENDPOINT", bad)]).unwrap_err();
        assert!(error.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && !error.contains("hush"), "{error}");
    }
    assert!(ask(&[base, ("OTEL_TRACES_EXPORTER", "zipkin")]).unwrap_err().contains("zipkin"));
    assert!(ask(&[base, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err().contains("http/protobuf"));
}

#[test]
fn the_environment_names_the_service() {
    let name = |pairs: &[(&str, &str)]| {
        let env = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        resource("1.2.3", &env).get(&"service.name".into()).unwrap().to_string()
    };
    assert_eq!(name(&[]), "voicegate");
    assert_eq!(name(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=edge")]), "edge");
    let both = [("OTEL_RESOURCE_ATTRIBUTES", "service.name=edge"), ("OTEL_SERVICE_NAME", "front")];
    assert_eq!(name(&both), "front");
}

/// What a collector was sent.
struct Posted {
    path: String,
    content_type: Option<HeaderValue>,
    body: Vec<u8>,
}

/// A collector that answers every export with success.
async fn collector() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Posted>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let sender = sender.clone();
            let service =
                hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let sender = sender.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let content_type = request.headers().get("content-type").cloned();
                        let body = request.into_body().collect().await?.to_bytes().to_vec();
                        let _ = sender.send(Posted { path, content_type, body });
                        let mut response = hyper::Response::new(String::new());
                        *response.status_mut() = StatusCode::OK;
                        Ok::<_, hyper::Error>(response)
                    }
                });
            let io = hyper_util::rt::TokioIo::new(socket);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    (address, receiver)
}

#[tokio::test]
async fn a_span_reaches_the_collector_with_the_ids_sent_upstream() {
    let (address, mut posted) = collector().await;
    let endpoint = format!("http://{address}");
    let env = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    let telemetry = Telemetry::with("1.2.3", AccessLog::nowhere(), Lines::nowhere(), &env).unwrap();

    let exchange = exchange("GET", "/api/v01/sessions/abc");
    let mut headers = HeaderMap::new();
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert(trace::TRACEPARENT, HeaderValue::from_static(theirs));
    assert!(telemetry.trace(&headers, &exchange));
    exchange.matched(route("/api/v01/sessions/:id").into(), Vec::new());
    exchange.set_status(502);
    let sent = TraceContext::parse(exchange.trace().unwrap().traceparent().as_bytes()).unwrap();
    assert_eq!(sent.trace_id.get(), 0x4bf92f3577b34da6a3ce929d0e0e4736);
    assert_ne!(sent.span_id.get(), 0x00f067aa0ba902b7);
    drop(exchange);

    telemetry.shutdown(Duration::from_secs(10)).await;
    let export = posted.recv().await.unwrap();
    assert_eq!(export.path, "/v1/traces");
    assert_eq!(export.content_type.unwrap(), "application/x-protobuf");
    let holds = |part: &[u8]| export.body.windows(part.len()).any(|window| window == part);
    assert!(holds(&sent.trace_id.get().to_be_bytes()), "trace id");
    assert!(holds(&sent.span_id.get().to_be_bytes()), "span id");
    assert!(holds(&0x00f067aa0ba902b7u64.to_be_bytes()), "parent span id");
    for text in ["GET /api/v01/sessions/:id", "http.route", "url.path", "voicegate", "1.2.3", "203.0.113.9"] {
        assert!(holds(text.as_bytes()), "{text}");
    }
}
