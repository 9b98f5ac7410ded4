//! Plots, as SVG written by hand: bars in groups, and lines.

use crate::{report::escaped, rows::Rows};

pub(crate) struct Plot {
    /// Of its file.
    pub(crate) name: &'static str,
    pub(crate) svg: String,
}

const SERVERS: [&str; 5] = ["bare", "mio", "glommio", "tokio", "go"];
const CONNECTIONS: [u32; 3] = [100, 1_000, 15_000];
const WINDOWS: [&str; 3] = ["50", "1000", "all"];
/// Colours that people who see few of them can tell apart.
const COLOURS: [&str; 5] = ["#999999", "#0072b2", "#56b4e9", "#e69f00", "#009e73"];

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 58.0;

/// Those for which there are figures.
pub(crate) fn all(rows: &Rows) -> Vec<Plot> {
    let bars = [
        ("heartbeat-ratio", "ratio", "CPU per heartbeat, × the bare loop", Some(1.15)),
        ("heartbeat-rate", "per_s", "Heartbeats answered per second on one core", None),
    ];
    let bars = bars
        .into_iter()
        .filter_map(|(name, of, title, goal)| Some(Plot { name, svg: servers(rows, of, title, goal)? }));
    let lines = [
        ("growth-cpu", "cpu_percent", "CPU of the gateway, % of a core", false),
        ("growth-p50", "p50_ms", "Latency of a heartbeat, median, ms (open loop)", true),
        ("growth-p99", "p99_ms", "Latency of a heartbeat, 99th percentile, ms (open loop)", true),
        ("growth-memory", "resident_mb", "Resident memory of the gateway, MB", false),
    ];
    let lines =
        lines.into_iter().filter_map(|(name, of, title, log)| Some(Plot { name, svg: growth(rows, of, title, log)? }));
    bars.chain(lines).collect()
}

/// A value scale: its ends, and where its lines are.
struct Scale {
    log: bool,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Scale {
    /// From zero to a round number above `most`.
    fn linear(most: f64) -> Self {
        let power = 10_f64.powf(most.log10().floor());
        let step = [0.2, 0.5, 1.0, 2.0].into_iter().map(|part| part * power).find(|step| most / step <= 6.0);
        let step = step.unwrap_or(2.0 * power);
        let count = (most / step).ceil() as u32;
        let ticks = (0..=count).map(|nth| f64::from(nth) * step).collect();
        Self { log: false, from: 0.0, to: f64::from(count) * step, ticks }
    }

    /// Powers of ten around all values.
    fn log(least: f64, most: f64) -> Self {
        let (first, last) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        let last = last.max(first + 1);
        let within = if last - first > 2 { &[1.0][..] } else { &[1.0, 2.0, 5.0] };
        let ticks = (first..last).flat_map(|power| within.iter().map(move |part| part * 10_f64.powi(power)));
        let ticks: Vec<f64> = ticks.chain([10_f64.powi(last)]).collect();
        Self { log: true, from: ticks[0], to: ticks[ticks.len() - 1], ticks }
    }

    fn y(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value.max(self.from) / self.from).log10() / (self.to / self.from).log10(),
            false => value / self.to,
        };
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }
}

/// A group of bars for each number of connections and window, a bar for each server.
fn servers(rows: &Rows, of: &str, title: &str, goal: Option<f64>) -> Option<String> {
    let value = |connections: u32, window: &str, server: &str| {
        let row = rows.get(&format!("cost/{connections}/{window}/{server}/{of}"))?;
        Some(row.median())
    };
    let mut groups = Vec::new();
    for connections in CONNECTIONS {
        for window in WINDOWS {
            let bars = SERVERS.map(|server| value(connections, window, server));
            if bars.iter().any(Option::is_some) {
                groups.push((connections, window, bars));
            }
        }
    }
    let most = groups.iter().flat_map(|(.., bars)| bars).flatten().fold(0.0, |most: f64, value| most.max(*value));
    if most == 0.0 {
        return None;
    }
    let scale = Scale::linear(most);
    let shown: Vec<&str> = (0..SERVERS.len())
        .filter(|&at| groups.iter().any(|(.., bars)| bars[at].is_some()))
        .map(|at| SERVERS[at])
        .collect();
    let mut out = frame(title, &scale);
    let each = (WIDTH - LEFT - RIGHT) / groups.len() as f64;
    let bar = (0.8 * each / shown.len() as f64).min(48.0);
    // Above the line of the goal, which is above the bars.
    let mut labels = String::new();
    for (at, (connections, window, bars)) in groups.iter().enumerate() {
        let middle = LEFT + (at as f64 + 0.5) * each;
        let mut x = middle - bar * shown.len() as f64 / 2.0;
        for (server, value) in bars.iter().enumerate().filter(|(server, _)| shown.contains(&SERVERS[*server])) {
            if let Some(value) = *value {
                let (y, colour) = (scale.y(value), COLOURS[server]);
                let height = HEIGHT - BOTTOM - y;
                out.push_str(&format!(
                    "<rect x='{x:.1}' y='{y:.1}' width='{:.1}' height='{height:.1}' fill='{colour}'/>",
                    bar - 1.5
                ));
                let label = if value < 10.0 { format!("{value:.2}") } else { short(value) };
                text(&mut labels, x + (bar - 1.5) / 2.0, y - 4.0, "middle", 10, &label);
            }
            x += bar;
        }
        text(
            &mut out,
            middle,
            HEIGHT - BOTTOM + 18.0,
            "middle",
            12,
            &format!("{} conn.", short(f64::from(*connections))),
        );
        let outstanding = if *window == "all" { "one each".to_owned() } else { format!("{window} outst.") };
        text(&mut out, middle, HEIGHT - BOTTOM + 34.0, "middle", 12, &outstanding);
    }
    if let Some(goal) = goal {
        let (y, to) = (scale.y(goal), WIDTH - RIGHT);
        out.push_str(&format!(
            "<line x1='{LEFT}' x2='{to:.1}' y1='{y:.1}' y2='{y:.1}' stroke='#b33a00' stroke-dasharray='5 4'/>"
        ));
        text(&mut labels, to, 46.0, "end", 12, &format!("- - goal: {goal}"));
    }
    out.push_str(&labels);
    let named = shown.iter().filter_map(|server| {
        let at = SERVERS.iter().position(|name| name == server)?;
        Some((
            COLOURS[at],
            if *server == "mio" || *server == "glommio" { format!("gateway, {server}") } else { (*server).to_owned() },
        ))
    });
    legend(&mut out, named);
    Some(out + "</svg>")
}

/// A line for each number of connections over the rate.
fn growth(rows: &Rows, of: &str, title: &str, log: bool) -> Option<String> {
    // By connections, points of rate and value.
    let mut lines: std::collections::BTreeMap<u32, Vec<(u32, f64)>> = std::collections::BTreeMap::new();
    for (name, row) in rows.iter() {
        let parts: Vec<&str> = name.split('/').collect();
        let ["growth", connections, rate, figure] = parts[..] else { continue };
        if let (Ok(connections), Ok(rate), true) = (connections.parse(), rate.parse(), figure == of) {
            lines.entry(connections).or_default().push((rate, row.median()));
        }
    }
    lines.values_mut().for_each(|points| points.sort_by_key(|(rate, _)| *rate));
    let values = || lines.values().flatten().map(|(_, value)| *value);
    let (least, most) =
        values().fold((f64::MAX, 0.0), |(least, most): (f64, f64), value| (least.min(value), most.max(value)));
    if most == 0.0 {
        return None;
    }
    let scale = if log { Scale::log(least, most) } else { Scale::linear(most) };
    let fastest = lines.values().flatten().map(|(rate, _)| *rate).max().map(f64::from)?;
    let mut out = frame(title, &scale);
    let x = |rate: u32| LEFT + f64::from(rate) / fastest * (WIDTH - LEFT - RIGHT - 20.0);
    let mut rates: Vec<u32> = lines.values().flatten().map(|(rate, _)| *rate).collect();
    rates.sort_unstable();
    rates.dedup();
    for rate in rates {
        let y = HEIGHT - BOTTOM;
        out.push_str(&format!("<line x1='{0:.1}' x2='{0:.1}' y1='{y}' y2='{1}' stroke='#666'/>", x(rate), y + 5.0));
        text(&mut out, x(rate), y + 20.0, "middle", 12, &short(f64::from(rate)));
    }
    text(&mut out, LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT - 14.0, "middle", 12, "heartbeats per second");
    let named = lines.keys().enumerate().map(|(at, connections)| {
        (COLOURS[(at + 1) % COLOURS.len()], format!("{} connections", short(f64::from(*connections))))
    });
    legend(&mut out, named);
    for (at, points) in lines.values().enumerate() {
        let colour = COLOURS[(at + 1) % COLOURS.len()];
        let path: Vec<String> =
            points.iter().map(|(rate, value)| format!("{:.1},{:.1}", x(*rate), scale.y(*value))).collect();
        out.push_str(&format!(
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2.5'/>",
            path.join(" ")
        ));
        for (rate, value) in points {
            out.push_str(&format!(
                "<circle cx='{:.1}' cy='{:.1}' r='3.5' fill='{colour}'/>",
                x(*rate),
                scale.y(*value)
            ));
        }
    }
    Some(out + "</svg>")
}

/// Title, background and the lines of the scale.
fn frame(title: &str, scale: &Scale) -> String {
    let mut out = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' \
         role='img' font-family='system-ui, sans-serif'><title>{0}</title><rect width='100%' height='100%' fill='#fff'/>",
        escaped(title)
    );
    out.push_str(&format!(
        "<text x='{LEFT}' y='24' font-size='16' font-weight='600' fill='#1a1a1a'>{}</text>",
        escaped(title)
    ));
    for tick in &scale.ticks {
        let y = scale.y(*tick);
        out.push_str(&format!(
            "<line x1='{LEFT}' x2='{:.1}' y1='{y:.1}' y2='{y:.1}' stroke='#dddddd'/>",
            WIDTH - RIGHT
        ));
        text(&mut out, LEFT - 8.0, y + 4.0, "end", 12, &short(*tick));
    }
    out
}

fn legend(out: &mut String, named: impl Iterator<Item = (&'static str, String)>) {
    let mut x = LEFT;
    for (colour, name) in named {
        out.push_str(&format!("<rect x='{x:.1}' y='36' width='12' height='12' fill='{colour}'/>"));
        text(out, x + 17.0, 46.0, "start", 12, &name);
        x += 34.0 + 7.0 * name.chars().count() as f64;
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
    let text = escaped(text);
    out.push_str(&format!(
        "<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}' font-size='{size}' fill='#333' \
         stroke='#fff' stroke-width='3' paint-order='stroke'>{text}</text>"
    ));
}

/// Few digits: a label.
fn short(value: f64) -> String {
    let text = match value {
        10_000.0.. => return format!("{}k", (value / 1e3).round()),
        1_000.0.. => return format!("{}k", (value / 100.0).round() / 10.0),
        10.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.to_owned()
}
