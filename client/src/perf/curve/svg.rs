//! Panels with both axes logarithmic, side by side in one SVG.

use std::fmt::Write;

const PANEL_WIDTH: f64 = 380.0;
const PANEL_HEIGHT: f64 = 260.0;
const COLUMNS: usize = 3;
/// Around the plot of a panel: for its title and the numbers of its axes.
const MARGIN: f64 = 48.0;
const HEADER: f64 = 40.0;

pub(super) struct Panel {
    pub title: &'static str,
    pub points: Vec<(f64, f64)>,
}

pub(super) fn draw(title: &str, x_title: &str, panels: &[Panel]) -> String {
    let (width, rows) = (PANEL_WIDTH * COLUMNS as f64, panels.len().div_ceil(COLUMNS));
    let height = HEADER + PANEL_HEIGHT * rows as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    text(&mut svg, (width / 2.0, 24.0), "middle", &format!("{title} ({x_title}, both axes logarithmic)"));
    for (number, panel) in panels.iter().enumerate() {
        let left = (number % COLUMNS) as f64 * PANEL_WIDTH;
        let top = HEADER + (number / COLUMNS) as f64 * PANEL_HEIGHT;
        draw_panel(&mut svg, panel, left, top);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(svg: &mut String, panel: &Panel, left: f64, top: f64) {
    text(svg, (left + PANEL_WIDTH / 2.0, top + 16.0), "middle", panel.title);
    // A logarithm has no zero: what took no time that can be measured is left out.
    let points: Vec<(f64, f64)> = panel.points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
    if points.is_empty() {
        return text(svg, (left + PANEL_WIDTH / 2.0, top + PANEL_HEIGHT / 2.0), "middle", "not measured");
    }
    let x = Axis::over(points.iter().map(|(x, _)| *x), left + MARGIN, left + PANEL_WIDTH - 16.0);
    let y = Axis::over(points.iter().map(|(_, y)| *y), top + PANEL_HEIGHT - 32.0, top + 28.0);
    for decade in x.decades() {
        line(svg, (x.at(decade), y.from), (x.at(decade), y.to));
        text(svg, (x.at(decade), y.from + 14.0), "middle", &number(decade));
    }
    for decade in y.decades() {
        line(svg, (x.from, y.at(decade)), (x.to, y.at(decade)));
        text(svg, (x.from - 4.0, y.at(decade) + 4.0), "end", &number(decade));
    }
    let places: Vec<(f64, f64)> = points.iter().map(|(size, cost)| (x.at(*size), y.at(*cost))).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\"/>", path.join(" "))
        .expect(INFALLIBLE);
    for ((px, py), (_, cost)) in places.iter().zip(&points) {
        writeln!(svg, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\" fill=\"#1f5fa8\"/>").expect(INFALLIBLE);
        text(svg, (*px, py - 6.0), "middle", &number(*cost));
    }
}

const INFALLIBLE: &str = "a String takes any text";

/// A logarithmic axis between two places of the picture.
struct Axis {
    /// Powers of ten, both ends included.
    low: i32,
    high: i32,
    from: f64,
    to: f64,
}

impl Axis {
    /// Over whole decades that hold all values.
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let high = values.fold(0.0_f64, f64::max).log10().ceil() as i32;
        Self { low, high: high.max(low + 1), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        (self.low..=self.high).map(|power| 10_f64.powi(power))
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    )
    .expect(INFALLIBLE);
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, content: &str) {
    writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{content}</text>", at.0, at.1)
        .expect(INFALLIBLE);
}

/// Short: 1k, 2.5M, 0.86.
fn number(value: f64) -> String {
    match value {
        _ if value >= 1_000_000.0 => format!("{}M", short(value / 1_000_000.0)),
        _ if value >= 1_000.0 => format!("{}k", short(value / 1_000.0)),
        _ => short(value),
    }
}

fn short(value: f64) -> String {
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_covers_whole_decades() {
        let axis = Axis::over([1_000.0, 50_000.0].into_iter(), 0.0, 100.0);
        assert_eq!(axis.decades().collect::<Vec<_>>(), [1_000.0, 10_000.0, 100_000.0]);
        assert!((axis.at(1_000.0) - 0.0).abs() < 1e-9 && (axis.at(10_000.0) - 50.0).abs() < 1e-9);
        let one = Axis::over([10.0].into_iter(), 0.0, 100.0);
        assert!((one.at(10.0) - 0.0).abs() < 1e-9, "a single value has a decade too");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.86, 5.0, 123.4, 1_000.0, 2_500_000.0].map(number), ["0.86", "5", "123", "1k", "2.5M"]);
    }
}
