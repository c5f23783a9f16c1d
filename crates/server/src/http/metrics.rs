//! `/metrics`: what the server counts, for Prometheus.
//!
//! Everything is counted where it happens and collected here when somebody asks; the hot paths pay
//! one addition. The table `METRICS` is all there is, and the reference is made from it.

use std::{fmt, fmt::Write as _, sync::Arc, time::Duration};

use axum::http::{HeaderValue, Response, header};
use broker::{
    AppEntry, Broker, DurationFigures, FetchResult,
    key::ClientKey,
    ledger::{LedgerRow, beijing_day, limit_of},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::service::{Payload, payload};

/// One metric.
pub(super) struct Metric {
    /// Its name, without the prefix `xinfu_` and without `_total`.
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Gathered, &mut Vec<Sample>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One value of a metric, with the values of its labels.
struct Sample(Vec<String>, Value);

enum Value {
    Count(u64),
    Level(f64),
    Durations(DurationFigures),
}

/// Everything at one moment.
struct Gathered {
    broker: Broker,
    /// How many apps there are.
    registered: usize,
    /// Those that have series of their own.
    apps: Vec<Arc<AppEntry>>,
    keys: Vec<Arc<ClientKey>>,
    /// What has been spent today, by app.
    ledgers: Vec<(Arc<AppEntry>, Vec<LedgerRow>)>,
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathered")
    }
}

const fn count(
    name: &'static str,
    help: &'static str,
    read: fn(&Gathered, &mut Vec<Sample>),
) -> Metric {
    Metric { name, kind: Kind::Counter, labels: &[], help, read }
}

fn one(samples: &mut Vec<Sample>, value: u64) {
    samples.push(Sample(Vec::new(), Value::Count(value)));
}

/// All metrics.
static METRICS: [Metric; 28] = [
    Metric {
        name: "build_info",
        kind: Kind::Gauge,
        labels: &["version"],
        help: "Always 1; the version of xinfu",
        read: |_, samples| {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            samples.push(Sample(vec![version], Value::Level(1.0)));
        },
    },
    Metric {
        name: "apps",
        kind: Kind::Gauge,
        labels: &[],
        help: "Registered apps",
        read: |all, samples| {
            samples.push(Sample(Vec::new(), Value::Level(all.registered as f64)));
        },
    },
    Metric {
        name: "token_refresh",
        kind: Kind::Counter,
        labels: &["appid", "kind", "result", "errcode"],
        help: "Fetches of tokens and tickets, by what came of them",
        read: refreshes,
    },
    Metric {
        name: "token_refresh_duration_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "How long fetches took",
        read: |all, samples| {
            let durations = all.broker.refresh_durations();
            samples.push(Sample(Vec::new(), Value::Durations(durations)));
        },
    },
    Metric {
        name: "token_expires_at_seconds",
        kind: Kind::Gauge,
        labels: &["appid", "kind"],
        help: "When the token or ticket ends, in Unix seconds; 0 when it is known to be dead",
        read: expiries,
    },
    Metric {
        name: "token_generation",
        kind: Kind::Gauge,
        labels: &["appid", "kind"],
        help: "The generation of the token or ticket",
        read: generations,
    },
    Metric {
        name: "token_trouble",
        kind: Kind::Gauge,
        labels: &["appid", "kind", "errcode"],
        help: "1 while refreshing fails; the errcode is empty when WeChat gave none",
        read: troubles,
    },
    Metric {
        name: "token_read",
        kind: Kind::Counter,
        labels: &["client", "result"],
        help: "Reads of tokens, by the id of the client key: `ok`, or `unavailable` when there was none",
        read: |all, samples| {
            for key in &all.keys {
                for (result, count) in [("ok", key.reads()), ("unavailable", key.unserved())] {
                    let labels = vec![key.id.clone(), result.to_owned()];
                    samples.push(Sample(labels, Value::Count(count)));
                }
            }
        },
    },
    Metric {
        name: "rate_limited",
        kind: Kind::Counter,
        labels: &["client"],
        help: "Calls that came too early, for the client key or for its app",
        read: |all, samples| {
            for key in &all.keys {
                samples.push(Sample(vec![key.id.clone()], Value::Count(key.limited())));
            }
        },
    },
    Metric {
        name: "upstream_requests",
        kind: Kind::Counter,
        labels: &["appid", "api", "class"],
        help: "Calls carried to WeChat: `ok`, `errcode` (about the call), `token` (about the \
                   token), `unanswered`; `api` is the path, or `other`",
        read: calls,
    },
    count("proxy_replays", "Carried calls that were sent again with another token", |all, to| {
        one(to, all.broker.counters().read().replays);
    }),
    Metric {
        name: "quota_used",
        kind: Kind::Gauge,
        labels: &["appid", "api"],
        help: "Calls that xinfu made of its own accord today, by Beijing's day",
        read: |all, samples| quotas(all, samples, |row, _| Some(f64::from(row.used))),
    },
    Metric {
        name: "quota_limit",
        kind: Kind::Gauge,
        labels: &["appid", "api"],
        help: "How many WeChat allows a day",
        read: |all, samples| quotas(all, samples, |_, limit| limit.map(f64::from)),
    },
    count(
        "foreign_refresh_detected",
        "Tokens that somebody outside ended before their time",
        |all, to| one(to, all.broker.counters().read().foreign_refreshes),
    ),
    count("reports", "Reports that a token failed", |all, to| {
        one(to, all.broker.counters().read().reports);
    }),
    count("reports_unfounded", "Reports of tokens that work", |all, to| {
        one(to, all.broker.counters().read().reports_unfounded);
    }),
    count("reports_unknown", "Reports of tokens that are not ours", |all, to| {
        one(to, all.broker.counters().read().reports_unknown);
    }),
    count("rotations", "New generations fetched and stored", |all, to| {
        one(to, all.broker.counters().read().rotations);
    }),
    count("lease_lost", "Leases that ran out before the fetch was sent", |all, to| {
        one(to, all.broker.counters().read().leases_lost);
    }),
    count("puts_lost", "Fetches that another replica's had overtaken", |all, to| {
        one(to, all.broker.counters().read().puts_lost);
    }),
    count("fetches_alone", "Fetches without a lease, or without a look at the store", |all, to| {
        one(to, all.broker.counters().read().fetches_alone);
    }),
    count("budget_refusals", "Calls not made because a budget was used up", |all, to| {
        one(to, all.broker.counters().read().budget_refusals);
    }),
    count("code_exchanges", "Codes exchanged", |all, to| {
        one(to, all.broker.counters().read().exchanges);
    }),
    count("codes_used", "Codes brought again without proof", |all, to| {
        one(to, all.broker.counters().read().codes_used);
    }),
    count("web_token_renewals", "Web tokens renewed, or tried to", |all, to| {
        one(to, all.broker.counters().read().renewals);
    }),
    count("grants_ended", "Grants that WeChat said have ended", |all, to| {
        one(to, all.broker.counters().read().grants_ended);
    }),
    count("audit_write_failures", "Audit entries that could not be written yet", |all, to| {
        one(to, all.broker.counters().read().audit_failures);
    }),
    count("unreadable_rows", "Rows of the store that cannot be read", |all, to| {
        one(to, all.broker.counters().read().unreadable_rows);
    }),
];

fn id(entry: &AppEntry) -> String {
    entry.app().id.to_string()
}

fn refreshes(all: &Gathered, samples: &mut Vec<Sample>) {
    for entry in &all.apps {
        for (kind, refreshed, count) in entry.traffic_figures().unwrap_or_default().refreshes {
            let (result, errcode) = match refreshed {
                FetchResult::Fine => ("ok", String::new()),
                FetchResult::Errcode(code) => ("errcode", code.to_string()),
                FetchResult::Unanswered => ("unanswered", String::new()),
            };
            let labels = vec![id(entry), kind.as_str().to_owned(), result.to_owned(), errcode];
            samples.push(Sample(labels, Value::Count(count)));
        }
    }
}

fn calls(all: &Gathered, samples: &mut Vec<Sample>) {
    for entry in &all.apps {
        for (path, class, count) in entry.traffic_figures().unwrap_or_default().calls {
            let labels = vec![id(entry), path, class.as_str().to_owned()];
            samples.push(Sample(labels, Value::Count(count)));
        }
    }
}

fn expiries(all: &Gathered, samples: &mut Vec<Sample>) {
    for entry in &all.apps {
        for status in all.broker.status(entry) {
            let Some(at) = status.expires_at else { continue };
            let at = if status.dead { 0 } else { at.as_secs() };
            let labels = vec![id(entry), status.kind.as_str().to_owned()];
            samples.push(Sample(labels, Value::Level(at as f64)));
        }
    }
}

fn generations(all: &Gathered, samples: &mut Vec<Sample>) {
    for entry in &all.apps {
        for status in all.broker.status(entry) {
            let Some(generation) = status.generation else { continue };
            let labels = vec![id(entry), status.kind.as_str().to_owned()];
            samples.push(Sample(labels, Value::Level(generation as f64)));
        }
    }
}

fn troubles(all: &Gathered, samples: &mut Vec<Sample>) {
    for entry in &all.apps {
        for status in all.broker.status(entry) {
            let Some(trouble) = status.trouble else { continue };
            let errcode = trouble.errcode.map(|code| code.to_string()).unwrap_or_default();
            let labels = vec![id(entry), status.kind.as_str().to_owned(), errcode];
            samples.push(Sample(labels, Value::Level(1.0)));
        }
    }
}

fn quotas(
    all: &Gathered,
    samples: &mut Vec<Sample>,
    read: fn(&LedgerRow, Option<u32>) -> Option<f64>,
) {
    for (entry, rows) in &all.ledgers {
        for row in rows {
            let Some(value) = read(row, limit_of(&row.api, entry.app().kind)) else { continue };
            samples.push(Sample(vec![id(entry), row.api.clone()], Value::Level(value)));
        }
    }
}

impl Gathered {
    async fn now(broker: &Broker) -> Self {
        /// So many apps have series of their own: when there are more, those that were called or
        /// are in trouble.
        const MOST_APPS: usize = 1_000;
        /// A store that is away must not keep the other figures back.
        const PATIENCE: Duration = Duration::from_secs(2);
        let mut apps = broker.apps();
        apps.sort_by_cached_key(|entry| entry.app().id.clone());
        let today = beijing_day(broker.now());
        let registered = apps.len();
        if registered > MOST_APPS {
            apps.retain(|entry| {
                let called = entry.traffic_figures().is_some_and(|it| !it.calls.is_empty());
                called || broker.status(entry).iter().any(|status| status.trouble.is_some())
            });
            apps.truncate(MOST_APPS);
        }
        let busy = apps.iter().filter(|entry| entry.traffic_figures().is_some());
        let busy: Vec<_> = busy.cloned().collect();
        let mut ledgers = Vec::new();
        let read = async {
            for entry in busy {
                let app = entry.app().id.clone();
                let mut rows = broker.ledger(&app).await?;
                rows.retain(|row| row.day == today);
                ledgers.push((entry, rows));
            }
            Ok::<_, broker::store::StoreError>(())
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(error = %err, "metrics lack the quotas"),
            Err(_) => tracing::warn!("metrics lack the quotas: the store does not answer in time"),
        }
        let mut keys = broker.client_keys();
        keys.sort_by(|one, other| one.id.cmp(&other.id));
        Self { broker: broker.clone(), registered, apps, keys, ledgers }
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in &METRICS {
            let mut samples = Vec::new();
            (metric.read)(self, &mut samples);
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for Sample(values, value) in samples {
                let labels: Vec<_> = metric.labels.iter().copied().zip(values).collect();
                if labels.is_empty() {
                    write(&mut family, value)?;
                } else {
                    write(&mut family.encode_family(&labels)?, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(one: &mut MetricEncoder<'_>, value: Value) -> Result<(), fmt::Error> {
    match value {
        Value::Count(count) => one.encode_counter::<NoLabelSet, _, u64>(&count, None),
        Value::Level(level) => one.encode_gauge(&level),
        Value::Durations(DurationFigures { buckets, sum }) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

/// Answers all metrics as text.
pub(super) async fn answer(broker: &Broker) -> Response<Payload> {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    let mut registry = Registry::with_prefix("xinfu");
    registry.register_collector(Box::new(Gathered::now(broker).await));
    let mut page = String::new();
    if text::encode(&mut page, &registry).is_err() {
        // A `String` takes everything.
        tracing::error!("the metrics could not be written");
    }
    let mut response = Response::new(payload(page));
    response.headers_mut().insert(header::CONTENT_TYPE, OPEN_METRICS);
    response
}

/// The reference of all metrics.
pub fn metrics_markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         `GET /metrics` on the admin listener, in the text format of OpenMetrics. Figures are of one \
         process since its start. With more than 1,000 apps, those that were called or are in \
         trouble have series of their own, up to 1,000; of each app at most 200 paths have. No \
         label holds a secret.\n\n\
         <!-- Generated from the table in crates/server by `cargo xtask codegen`: do not edit. -->\n\n\
         | metric | type | labels | what |\n|---|---|---|---|\n",
    );
    for Metric { name, kind, labels, help, .. } in &METRICS {
        let (suffix, kind) = match kind {
            Kind::Counter => ("_total", "counter"),
            Kind::Gauge => ("", "gauge"),
            Kind::Histogram => ("", "histogram"),
        };
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        let _ = writeln!(page, "| `xinfu_{name}{suffix}` | {kind} | {labels} | {help} |");
    }
    page
}
