// Each panel type with the components of @grafana/ui that Grafana's own panel draws it with.
import {
  applyNullInsertThreshold,
  type DataFrame,
  FieldType,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  type GrafanaTheme2,
  type TimeRange,
  VizOrientation,
} from '@grafana/data';
import { BigValue, TimeSeries, type UPlotConfigBuilder, VizLegend, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { type ReactNode, useLayoutEffect } from 'react';

export interface Size {
  width: number;
  height: number;
}
export interface Drawn extends Size {
  panel: any;
  frames: DataFrame[];
  range: TimeRange;
  marks: number[]; // when runs began, ms
  theme: GrafanaTheme2;
}

const same = (text: string) => text;

function Empty({ panel, width, height }: Drawn) {
  const text = panel.fieldConfig.defaults.noValue ?? 'No data';
  const style = { width, height, display: 'flex', alignItems: 'center', justifyContent: 'center' };
  return <div style={{ ...style, opacity: 0.65 }}>{text}</div>;
}

function displayValues({ panel, frames, theme }: Drawn) {
  return getFieldDisplayValues({
    data: frames,
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: same,
    theme,
    timeZone: 'utc',
  });
}

// public/app/plugins/panel/stat: a BigValue for each value, laid out by VizRepeater.
function Stat(drawn: Drawn) {
  const { panel, width, height, frames, theme } = drawn;
  const { options } = panel;
  const values = displayValues(drawn);
  return (
    <VizRepeater
      getValues={() => values}
      getAlignmentFactors={getDisplayValueAlignmentFactors as any}
      renderValue={({ value, width, height, alignmentFactors, count }: any) => (
        <BigValue
          value={value.display}
          width={width}
          height={height}
          count={count}
          theme={theme}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={options.textMode}
          alignmentFactors={alignmentFactors}
        />
      )}
      width={width}
      height={height}
      source={frames}
      itemSpacing={3}
      renderCounter={0}
      autoGrid={true}
      orientation={options.orientation ?? VizOrientation.Auto}
    />
  );
}

function Marks({ config, times, color }: { config: UPlotConfigBuilder; times: number[]; color: string }) {
  useLayoutEffect(() => {
    config.addHook('draw', (u) => {
      const { ctx, bbox } = u;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = color;
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.setLineDash([5 * devicePixelRatio, 5 * devicePixelRatio]);
      for (const time of times) {
        const x = u.valToPos(time, 'x', true);
        if (x >= bbox.left && x <= bbox.left + bbox.width) {
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
        }
      }
      ctx.restore();
    });
  }, [config, times, color]);
  return null;
}

// public/app/plugins/panel/timeseries. @grafana/ui has its core under "graveyard".
function Lines(drawn: Drawn) {
  const { panel, frames, width, height, range, marks, theme } = drawn;
  if (!frames.length) {
    return <Empty {...drawn} />;
  }
  let index = 0;
  // Grafana's panel does this for each frame; the older core in @grafana/ui for the first only.
  const gapped = frames.map((frame) =>
    applyNullInsertThreshold({
      frame,
      refFieldPseudoMin: range.from.valueOf(),
      refFieldPseudoMax: range.to.valueOf(),
    })
  );
  for (const frame of gapped) {
    for (const field of frame.fields) {
      if (field.type === FieldType.number) {
        const custom = { pointSize: 5, axisPlacement: 'auto', scaleDistribution: { type: 'linear' } };
        field.config = { ...field.config, custom: { ...custom, ...field.config.custom } };
        field.state = { ...field.state, seriesIndex: index++ };
      }
    }
  }
  return (
    <TimeSeries
      frames={gapped}
      structureRev={1}
      timeRange={range}
      timeZone="utc"
      width={width}
      height={height}
      legend={panel.options.legend}
    >
      {(config: UPlotConfigBuilder): ReactNode => (
        <Marks config={config} times={marks} color={theme.visualization.getColorByName('blue')} />
      )}
    </TimeSeries>
  );
}

// public/app/plugins/panel/table.
function Rows(drawn: Drawn) {
  const { panel, frames, width, height, range } = drawn;
  if (!frames.length || !frames[0].length) {
    return <Empty {...drawn} />;
  }
  return (
    <TableNG
      data={frames[0]}
      width={width}
      height={height}
      noHeader={!panel.options.showHeader}
      showTypeIcons={false}
      resizable={false}
      initialSortBy={panel.options.sortBy}
      cellHeight={panel.options.cellHeight}
      timeRange={range}
      fieldConfig={panel.fieldConfig}
      structureRev={1}
      enableVirtualization={false}
    />
  );
}

// Grafana's packages do not export the state timeline: bands in its colours, drawn by hand.
function States(drawn: Drawn) {
  const { panel, frames, width, height, range, theme } = drawn;
  if (!frames.length) {
    return <Empty {...drawn} />;
  }
  const names = frames.map((frame) => getFieldDisplayName(frame.fields[1], frame, frames));
  const left = 12 + 7 * Math.max(...names.map((name) => name.length));
  const [axis, legend] = [20, 32];
  const row = (height - axis - legend) / frames.length;
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const x = (time: number) => left + ((time - from) / (to - from)) * (width - left - 8);
  const text = { fill: theme.colors.text.primary, fontSize: 12, fontFamily: theme.typography.fontFamily };
  const ticks = [0.1, 0.3, 0.5, 0.7, 0.9].map((part) => from + part * (to - from));
  const items = new Map<string, string>();
  const bands = frames.flatMap((frame, n) => {
    const [time, value] = frame.fields;
    const step = time.config.interval ?? 5000;
    const spans: Array<{ value: number; start: number; end: number }> = [];
    value.values.forEach((v: number, i: number) => {
      const [start, end] = [time.values[i], Math.min(time.values[i] + step, to)];
      const last = spans[spans.length - 1];
      if (last && last.value === v && start - last.end <= step) {
        last.end = end; // as Grafana's option mergeValues does
      } else {
        spans.push({ value: v, start, end });
      }
    });
    return spans.map((span) => {
      const shown = value.display!(span.value);
      items.set(shown.text, shown.color!);
      const wide = Math.max(0, x(span.end) - x(span.start));
      return (
        <rect key={`${n} ${span.start}`} x={x(span.start)} y={n * row + row * 0.05} width={wide} height={row * 0.9} fill={shown.color} fillOpacity={0.7} />
      );
    });
  });
  return (
    <div style={{ width, height }}>
      <svg width={width} height={height - legend}>
        {bands}
        {names.map((name, n) => (
          <text key={n} {...text} x={left - 8} y={(n + 0.5) * row + 4} textAnchor="end">{name}</text>
        ))}
        {ticks.map((tick) => (
          <text key={tick} {...text} x={x(tick)} y={height - legend - 5} textAnchor="middle">
            {new Date(tick).toISOString().slice(11, 19)}
          </text>
        ))}
      </svg>
      <VizLegend
        placement="bottom"
        displayMode={panel.options.legend.displayMode}
        items={[...items].map(([label, color]) => ({ label, color, yAxis: 1 }))}
      />
    </div>
  );
}

export const KINDS: Record<string, (drawn: Drawn) => ReactNode> = {
  stat: Stat,
  timeseries: Lines,
  table: Rows,
  'state-timeline': States,
};
