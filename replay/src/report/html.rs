//! The report as one HTML file: inline style and SVG, no script, nothing to fetch, so that it can be attached to a
//! decision and read in years.

use std::fmt::Write;

use super::{DifferenceKind, ParityReport};

/// Differences on the page; the JSON form has all.
const MOST_SHOWN: usize = 2_000;
const BAR: f64 = 420.0;
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24;\
background:#fff}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d8dee4;vertical-align:top}\
td.n{text-align:right;font-variant-numeric:tabular-nums}.ok{color:#1a7f37}.bad{color:#b42318}code{font-size:.9em;\
word-break:break-all}svg text{font:12px system-ui,sans-serif;fill:#1b1f24}\
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8eb}th,td{border-color:#333a41}svg text{fill:#e6e8eb}\
.ok{color:#57c67a}.bad{color:#ff7b72}}";

pub(super) fn page(report: &ParityReport) -> String {
    let name = escaped(&report.projection);
    let (class, verdict) = if report.is_clean() { ("ok", "clean") } else { ("bad", "not clean") };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Parity of {name}@{} against {name}@{}</title><style>{STYLE}</style></head>\n\
         <body><h1>Parity of {name}@{} against {name}@{}: <span class=\"{class}\">{verdict}</span></h1>\n",
        report.candidate, report.live, report.candidate, report.live,
    );
    let _ = writeln!(
        page,
        "<p>{} keys compared, <b>{}</b> differ, {} excused by rules; {:.1} s. Each partition is compared at one position:</p>\
         <p><code>{}</code></p>",
        report.compared(),
        report.differing,
        report.excused(),
        report.seconds,
        escaped(&report.vector.to_string()),
    );
    chart(
        &mut page,
        "Keys by outcome",
        &[
            ("equal".to_owned(), report.partitions.iter().map(|partition| partition.equal).sum()),
            ("excused".to_owned(), report.excused()),
            ("differ".to_owned(), report.differing),
        ],
    );
    let bars = |counts: Vec<(String, u64)>| counts;
    chart(
        &mut page,
        "Differing keys by field",
        &bars(report.by_field().into_iter().map(|(field, count)| (field.to_owned(), count)).collect()),
    );
    chart(&mut page, "Differing keys by region", &bars(report.by_region().into_iter().collect()));
    partitions(&mut page, report);
    rules(&mut page, report);
    queries(&mut page, report);
    differences(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

/// Horizontal bars, the longest as wide as the chart.
fn chart(page: &mut String, title: &str, counts: &[(String, u64)]) {
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    let height = 26 * counts.len();
    let _ = write!(
        page,
        "<h2>{title}</h2><svg role=\"img\" aria-label=\"{title}\" width=\"100%\" viewBox=\"0 0 760 {height}\" \
         style=\"max-width:760px\">"
    );
    for (row, (label, count)) in counts.iter().enumerate() {
        let y = row * 26;
        let width = (BAR * *count as f64 / most as f64).max(if *count > 0 { 1.0 } else { 0.0 });
        let _ = write!(
            page,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"200\" y=\"{}\" width=\"{width:.1}\" height=\"18\" rx=\"2\" \
             fill=\"#3b7dd8\"/><text x=\"{:.1}\" y=\"{}\">{count}</text>",
            y + 16,
            escaped(label),
            y + 3,
            208.0 + width,
            y + 16,
        );
    }
    page.push_str("</svg>\n");
}

fn partitions(page: &mut String, report: &ParityReport) {
    page.push_str(
        "<h2>Partitions</h2><table><tr><th>partition<th>sequence<th>compared<th>equal<th>excused<th>differ<th>rounds</tr>\n",
    );
    for partition in &report.partitions {
        let _ = writeln!(
            page,
            "<tr><td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            partition.partition,
            partition.at.sequence,
            partition.compared,
            partition.equal,
            partition.excused,
            partition.differing,
            partition.rounds,
        );
    }
    page.push_str("</table>\n");
}

fn rules(page: &mut String, report: &ParityReport) {
    if report.rules.is_empty() {
        return;
    }
    page.push_str("<h2>Rules for meant differences</h2><table><tr><th>field<th>kind<th>why</tr>\n");
    for rule in &report.rules {
        let (field, reach, reason) = (escaped(&rule.field), escaped(&rule.reach()), escaped(&rule.reason));
        let _ = writeln!(page, "<tr><td>{field}<td>{reach}<td>{reason}</tr>");
    }
    page.push_str("</table>\n");
}

fn queries(page: &mut String, report: &ParityReport) {
    let Some(queries) = &report.queries else { return };
    page.push_str("<h2>Queries</h2><table><tr><th>query<th>hits in live<th>in candidate<th>overlap<th>rank</tr>\n");
    for query in &queries.queries {
        let class = if query.is_below(&queries.bounds) { " class=bad" } else { "" };
        let _ = writeln!(
            page,
            "<tr{class}><td>{}<td class=n>{}<td class=n>{}<td class=n>{:.3}<td class=n>{:.3}</tr>",
            escaped(&query.query),
            query.live_total,
            query.candidate_total,
            query.overlap,
            query.rank,
        );
    }
    page.push_str("</table>\n");
}

fn differences(page: &mut String, report: &ParityReport) {
    if report.differences.is_empty() {
        return;
    }
    page.push_str("<h2>Keys that differ</h2><table><tr><th>key<th>partition<th>how<th>live<th>candidate</tr>\n");
    for difference in report.differences.iter().take(MOST_SHOWN) {
        let values = |fields: &Option<crate::fields::Fields>| match fields {
            Some(fields) => {
                let is_wanted = |name: &str| {
                    difference.kind != DifferenceKind::Differs || difference.fields.iter().any(|field| field == name)
                };
                let shown = fields.iter().filter(|(name, _)| is_wanted(name));
                escaped(&shown.map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", "))
            }
            None => "nothing".to_owned(),
        };
        let kind = serde_json::to_value(difference.kind).unwrap_or_default();
        let _ = writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td><code>{}</code><td><code>{}</code></tr>",
            escaped(&difference.key),
            escaped(&difference.partition),
            kind.as_str().unwrap_or_default().replace('_', " "),
            values(&difference.live),
            values(&difference.candidate),
        );
    }
    page.push_str("</table>\n");
    let shown = report.differences.len().min(MOST_SHOWN) as u64;
    if shown < report.differing {
        let _ = writeln!(page, "<p>… and {} more: the JSON form lists them.</p>", report.differing - shown);
    }
}

/// Names and values come from outside.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}
