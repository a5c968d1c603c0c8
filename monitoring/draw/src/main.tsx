// One dashboard in its grid, from window.DASHBOARD, which draw.py fills in.
import { createTheme, type DataFrame, dateTime, ThemeContext, type TimeRange } from '@grafana/data';
import { GlobalStyles, PanelChrome } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

import { type Answer, framesOf } from './data';
import { KINDS } from './panels';

interface Input {
  dashboard: any;
  answers: Record<number, Answer[]>; // by the panel's id
  from: number; // ms
  to: number;
  marks: number[];
  width: number;
  note: string;
}

const CELL = 30; // of Grafana's grid, px
const GAP = 8;
const TOP = 48;

// Grafana's font, which the width of numbers is measured with before they are drawn.
async function fonts() {
  for (const [name, weight] of [['Regular', '400'], ['Medium', '500']]) {
    const face = new FontFace('Inter', `url(public/fonts/inter/Inter-${name}.woff2)`, { weight });
    document.fonts.add(await face.load());
  }
}

async function draw(input: Input) {
  await fonts();
  const theme = createTheme({ colors: { mode: 'dark' } });
  const { dashboard, answers, marks, width } = input;
  const times = { from: dateTime(input.from), to: dateTime(input.to) };
  const range: TimeRange = { ...times, raw: times };
  const column = (width - 2 * GAP + GAP) / 24;
  const drawn: Array<{ panel: any; frames: DataFrame[] }> = [];
  for (const panel of dashboard.panels) {
    drawn.push({ panel, frames: await framesOf(panel, answers[panel.id], theme) });
  }
  const place = ({ x, y, w, h }: any) => ({
    left: GAP + x * column,
    top: TOP + y * (CELL + GAP),
    width: w * column - GAP,
    height: h * (CELL + GAP) - GAP,
  });
  const page = (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ position: 'absolute', left: GAP + 4, top: 12, fontSize: 18 }}>
        {dashboard.title}
        <span style={{ fontSize: 13, opacity: 0.7, marginLeft: 16 }}>{input.note}</span>
      </div>
      {drawn.map(({ panel, frames }) => {
        const at = place(panel.gridPos);
        const Kind = KINDS[panel.type];
        return (
          <div key={panel.id} style={{ position: 'absolute', ...at }}>
            <PanelChrome title={panel.title} width={at.width} height={at.height}>
              {(width, height) => <Kind {...{ panel, frames, width, height, range, marks, theme }} />}
            </PanelChrome>
          </div>
        );
      })}
    </ThemeContext.Provider>
  );
  createRoot(document.getElementById('page')!).render(page);
}

declare global {
  interface Window {
    DASHBOARD: Input;
  }
}

draw(window.DASHBOARD).catch((error) => {
  document.body.textContent = `draw: ${error.stack ?? error}`;
});
