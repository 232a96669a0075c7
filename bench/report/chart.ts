import type { ResultRow } from "../results.ts";
import { formatGain, formatValue } from "./format.ts";

/** The results as a picture: for each thing that was measured a bar of the baseline and one of ours, to one scale. */

const WIDTH = 960;
const LABELS = 372;
const VALUES = 110;
const GAIN = 70;
const BAR = 11;
const ROW = 40;
const TOP = 84;
const BARS = WIDTH - LABELS - VALUES - GAIN - 24;

const INK = "#1f2328";
const FAINT = "#6b7280";
const RULE = "#e5e7eb";
const BASELINE = "#b6bcc6";
const FASTER = "#1f7a5c";
const SLOWER = "#c2571a";

/** An SVG of the rows that are times and have both; the longer bar of each is as long as the space allows. */
export function chart(rows: readonly ResultRow[], subtitle: string): string {
  const shown = rows.flatMap((row) => {
    const { baseline, ours, unit } = row;
    return unit !== "ms" || baseline === undefined || ours === undefined ? [] : [{ ...row, baseline, ours }];
  });
  const height = TOP + shown.length * ROW + 24;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, sans-serif" font-size="13" fill="${INK}">
<rect width="100%" height="100%" fill="#ffffff"/>
${text(24, 34, "sandbox-backup beside the straightforward way", 'font-size="18" font-weight="600"')}
${text(24, 56, subtitle, `fill="${FAINT}" font-size="12"`)}
${legend()}
${shown.map((row, index) => bars(row, TOP + index * ROW)).join("\n")}
</svg>
`;
}

function legend(): string {
  const entries = [
    ["baseline", BASELINE, 320],
    ["ours, faster", FASTER, 228],
    ["ours, slower", SLOWER, 114],
  ] as const;
  return entries
    .map(([name, color, fromRight]) => {
      const x = WIDTH - fromRight;
      return `<rect x="${x}" y="24" width="${BAR}" height="${BAR}" fill="${color}"/>${text(x + 17, 34, name, 'font-size="12"')}`;
    })
    .join("");
}

function bars(
  { title, data, profile, baseline, ours }: ResultRow & { baseline: number; ours: number },
  y: number,
): string {
  const longer = Math.max(baseline, ours);
  const length = (value: number) => Math.max(1, (value / longer) * BARS).toFixed(1);
  const color = ours <= baseline ? FASTER : SLOWER;
  const bar = (value: number, top: number, fill: string) =>
    `<rect x="${LABELS}" y="${top}" width="${length(value)}" height="${BAR}" rx="2" fill="${fill}"/>` +
    text(LABELS + Number(length(value)) + 8, top + 10, formatValue(value, "ms"), `font-size="11" fill="${FAINT}"`);
  return [
    `<line x1="24" x2="${WIDTH - 24}" y1="${y}" y2="${y}" stroke="${RULE}"/>`,
    text(24, y + 18, title, 'font-weight="500"'),
    text(24, y + 33, `${data}, ${profile}`, `fill="${FAINT}" font-size="11"`),
    bar(baseline, y + 8, BASELINE),
    bar(ours, y + 22, color),
    text(WIDTH - 24, y + 25, formatGain(baseline, ours), `text-anchor="end" font-weight="600" fill="${color}"`),
  ].join("");
}

function text(x: number, y: number, content: string, attributes = ""): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${x}" y="${y}" ${attributes}>${escaped}</text>`;
}
