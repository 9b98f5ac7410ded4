//! A run as one page: no script, no font, nothing from elsewhere.

use super::chart::{Band, Line, Scale, by_percentile, over_time};
use super::json::{Report, Result, Short};
use crate::measure::{Metric, Moment};

const STYLE: &str = include_str!("style.css");

/// Text in which nothing is markup.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut html = String::new();
    let title = escape(&report.name);
    put!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}: {}</title><style>{STYLE}</style></head><body><main>",
        report.result.as_str()
    );
    head(&mut html, report);
    tiles(&mut html, report);
    thresholds(&mut html, report);
    correctness(&mut html, report);
    charts(&mut html, report);
    latencies(&mut html, report);
    phases(&mut html, report);
    configuration(&mut html, report);
    html + "</main></body></html>\n"
}

fn head(html: &mut String, report: &Report) {
    let result = report.result.as_str();
    put!(
        html,
        "<header><div><h1>{}</h1><p class=\"about\">{}</p></div><span class=\"badge {result}\">{result}</span></header>",
        escape(&report.name),
        escape(&report.scenario.about)
    );
    put!(
        html,
        "<p class=\"meta\">{} · {} s measured · {} devices · {} process{} · {} cores · Linux {} · seed {}{}</p>",
        report.begun_at,
        report.measured_s,
        report.scenario.fleet.devices,
        report.processes,
        if report.processes == 1 { "" } else { "es" },
        report.machine.cores,
        escape(&report.machine.kernel),
        report.scenario.seed,
        if report.interrupted { " · interrupted" } else { "" }
    );
    if report.result != Result::Passed {
        html.push_str("<ul class=\"reasons\">");
        for reason in &report.reasons {
            put!(html, "<li>{}</li>", escape(reason));
        }
        html.push_str("</ul>");
    }
}

fn tiles(html: &mut String, report: &Report) {
    let figure = |name: &str| report.figures.get(name).copied();
    let ms = |name: &str| figure(&format!("{name}.p99_ms")).map(|value| format!("{} ms", Short(value)));
    let most = report.series.bound.iter().max().map(|most| most.to_string());
    let above = |name: &str| figure(name).filter(|value| *value > 0.0).map(|value| Short(value).to_string());
    let tiles = [
        ("most devices bound", most),
        ("bound per second", above("bound_per_s")),
        ("heartbeats per second", above("heartbeat.per_s")),
        ("heartbeat p99", ms("heartbeat")),
        ("status read p99", ms("api.status")),
        ("settled per second", above("settled_per_s")),
        ("generator late p99", ms("late")),
        ("generator CPU", Some(format!("{:.0} %", report.generator.cpu_percent))),
    ];
    html.push_str("<section class=\"tiles\">");
    for (name, value) in tiles {
        if let Some(value) = value {
            put!(html, "<div><b>{value}</b><span>{name}</span></div>");
        }
    }
    html.push_str("</section>");
}

fn thresholds(html: &mut String, report: &Report) {
    if report.thresholds.is_empty() {
        return;
    }
    html.push_str("<section><h2>Thresholds</h2><table><thead><tr><th>condition</th><th class=\"n\">measured</th><th></th></tr></thead><tbody>");
    for checked in &report.thresholds {
        let value = checked.value.map_or_else(|| "–".to_owned(), |value| Short(value).to_string());
        let (class, word) = if checked.passed { ("ok", "pass") } else { ("bad", "fail") };
        put!(
            html,
            "<tr><td><code>{}</code></td><td class=\"n\">{value}</td><td class=\"{class}\">{word}</td></tr>",
            escape(&checked.threshold)
        );
    }
    html.push_str("</tbody></table></section>");
}

fn correctness(html: &mut String, report: &Report) {
    let correctness = &report.correctness;
    let orders = &correctness.orders;
    html.push_str("<section><h2>Correctness</h2><table><tbody>");
    let count = |value: i64| (value.to_string(), value == 0);
    let unsigned = |value: u64| (value.to_string(), value == 0);
    let compared = match &orders.skipped {
        Some(why) => (format!("not compared: {}", escape(why)), true),
        None => (format!("{} compared, {} wrong", orders.checked, orders.wrong), orders.wrong == 0),
    };
    for (name, (value, good)) in [
        ("requests of devices without an answer", count(correctness.lost)),
        ("frames that answer nothing or the wrong thing", count(correctness.mismatched)),
        ("records that ended in time and were not acknowledged", unsigned(correctness.unsettled)),
        ("devices that never could connect", count(correctness.never_connected)),
        ("orders and records, ledgers of the devices against the API", compared),
    ] {
        let class = if good { "ok" } else { "bad" };
        put!(html, "<tr><td>{name}</td><td class=\"n {class}\">{value}</td></tr>");
    }
    for (code, count) in &correctness.refusals {
        put!(html, "<tr><td>refused: {}</td><td class=\"n\">{count}</td></tr>", escape(code));
    }
    html.push_str("</tbody></table>");
    if !orders.details.is_empty() || !correctness.remarks.is_empty() {
        html.push_str("<details open><summary>The first of them</summary><ul class=\"remarks\">");
        for remark in orders.details.iter().chain(&correctness.remarks) {
            put!(html, "<li>{}</li>", escape(remark));
        }
        html.push_str("</ul></details>");
    }
    html.push_str("</section>");
}

fn charts(html: &mut String, report: &Report) {
    let series = &report.series;
    let seconds: Vec<f64> = series.second.iter().map(|second| *second as f64).collect();
    let bands: Vec<Band<'_>> = report
        .phases
        .iter()
        .map(|phase| Band { name: &phase.name, from: phase.from_s as f64, to: phase.to_s as f64, muted: phase.warm_up })
        .collect();
    let counts = |values: &[i64]| values.iter().map(|value| Some(*value as f64)).collect::<Vec<_>>();
    let mut draw = |title: &str, unit: &str, scale: Scale, lines: &[Line<'_>]| {
        html.push_str(&over_time(title, unit, scale, &seconds, &bands, lines));
    };
    let of = |metric: Metric, value: fn(&Moment) -> f64| -> Option<Vec<Option<f64>>> {
        let moments = series.latencies.get(metric.as_str())?;
        Some(moments.iter().map(|moment| moment.as_ref().map(value)).collect())
    };
    draw(
        "Devices",
        "",
        Scale::Linear,
        &[
            Line { name: "connected", values: counts(&series.connected) },
            Line { name: "bound", values: counts(&series.bound) },
            Line { name: "charging", values: counts(&series.charging) },
        ],
    );
    let rates = [
        ("Devices bound per second", Some(counts(&series.binds))),
        ("Heartbeats answered per second", of(Metric::Heartbeat, |moment| moment.count as f64)),
        ("Status reads answered per second", of(Metric::ApiStatus, |moment| moment.count as f64)),
        ("Charges answered per second", of(Metric::ApiCharge, |moment| moment.count as f64)),
        ("Commands answered per second", of(Metric::ApiCommand, |moment| moment.count as f64)),
        ("Records acknowledged per second", Some(counts(&series.settled))),
    ];
    for (title, values) in rates {
        // A second without an answer is a rate of 0.
        let values: Option<Vec<_>> = values.map(|values| values.into_iter().map(|value| value.or(Some(0.0))).collect());
        if let Some(values) = values.filter(|values| values.iter().flatten().any(|value| *value > 0.0)) {
            draw(title, "", Scale::Linear, &[Line { name: title, values }]);
        }
    }
    for (metric, title) in [
        (Metric::Heartbeat, "Heartbeat to answer, ms"),
        (Metric::Bind, "Connect to bound, ms"),
        (Metric::Settlement, "Record to acknowledgement, ms"),
        (Metric::ApiStatus, "Status read, ms"),
        (Metric::ApiList, "Page of orders, ms"),
        (Metric::ApiCharge, "Charge to 202, ms"),
        (Metric::ChargeFrame, "202 of a charge to its frame, ms"),
        (Metric::ApiCommand, "Command to 202, ms"),
        (Metric::CommandFrame, "202 of a command to its frame, ms"),
        (Metric::Late, "Lateness of the generator, ms"),
    ] {
        let Some(p50) = of(metric, |moment| moment.p50_ms) else { continue };
        let (Some(p99), Some(max)) = (of(metric, |moment| moment.p99_ms), of(metric, |moment| moment.max_ms)) else {
            continue;
        };
        let lines = [("median", p50), ("p99", p99), ("slowest", max)];
        draw(title, " ms", Scale::Log, &lines.map(|(name, values)| Line { name, values }));
    }
    let cpu = series.cpu_percent.iter().map(|percent| Some(*percent)).collect();
    draw("CPU of the generator, % of a core", " %", Scale::Linear, &[Line { name: "CPU", values: cpu }]);
    let curves: Vec<(&str, &[(f64, f64)])> =
        [Metric::Heartbeat, Metric::Bind, Metric::Settlement, Metric::ApiStatus, Metric::ApiCharge, Metric::ApiCommand]
            .into_iter()
            .filter_map(|metric| Some((metric.as_str(), report.distributions.get(metric.as_str())?.as_slice())))
            .collect();
    if !curves.is_empty() {
        html.push_str(&by_percentile("Latency by percentile, ms", &curves));
    }
}

fn latencies(html: &mut String, report: &Report) {
    html.push_str(
        "<section><h2>Latencies</h2><p class=\"note\">From the time a thing was to be done, in milliseconds, without the warm-up.</p>\
         <table><thead><tr><th></th><th class=\"n\">count</th><th class=\"n\">per s</th><th class=\"n\">p50</th><th class=\"n\">p90</th>\
         <th class=\"n\">p99</th><th class=\"n\">p99.9</th><th class=\"n\">max</th></tr></thead><tbody>",
    );
    for metric in Metric::ALL {
        let figure = |property: &str| report.figures.get(&format!("{}.{property}", metric.as_str())).copied();
        if figure("count").unwrap_or_default() <= 0.0 {
            continue;
        }
        put!(html, "<tr><td>{}</td>", metric.as_str());
        for property in ["count", "per_s", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"] {
            put!(html, "<td class=\"n\">{}</td>", Short(figure(property).unwrap_or_default()));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></section>");
}

fn phases(html: &mut String, report: &Report) {
    let columns = [
        ("binds", "binds"),
        ("bound/s", "bound_per_s"),
        ("heartbeats/s", "heartbeat.per_s"),
        ("heartbeat p99 ms", "heartbeat.p99_ms"),
        ("status p99 ms", "api.status.p99_ms"),
        ("charges", "api.charges"),
        ("commands", "api.commands"),
        ("settled/s", "settled_per_s"),
        ("lost", "lost"),
    ];
    html.push_str("<section><h2>Phases</h2><table><thead><tr><th></th><th class=\"n\">seconds</th>");
    for (title, _) in columns {
        put!(html, "<th class=\"n\">{title}</th>");
    }
    html.push_str("</tr></thead><tbody>");
    for phase in &report.phases {
        let note = if phase.warm_up { " <em>warm-up</em>" } else { "" };
        put!(html, "<tr><td>{}{note}</td><td class=\"n\">{}–{}</td>", escape(&phase.name), phase.from_s, phase.to_s);
        for (_, name) in columns {
            let value = phase.figures.get(name).map_or_else(|| "–".to_owned(), |value| Short(*value).to_string());
            put!(html, "<td class=\"n\">{value}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></section>");
}

fn configuration(html: &mut String, report: &Report) {
    let text = toml::to_string(&report.scenario).unwrap_or_default();
    put!(
        html,
        "<section><h2>Configuration</h2><details><summary>The scenario as it was run</summary><pre>{}</pre></details></section>",
        escape(&text)
    );
}
