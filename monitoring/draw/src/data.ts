// From Prometheus's answers to Grafana's data frames, as its Prometheus data source makes them.
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  type DataFrame,
  type Field,
  type FieldConfigPropertyItem,
  FieldConfigOptionsRegistry,
  FieldType,
  identityOverrideProcessor,
  renderLegendFormat,
  standardTransformers,
  standardTransformersRegistry,
  thresholdsOverrideProcessor,
  toDataFrame,
  transformDataFrame,
  type GrafanaTheme2,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

type Labels = Record<string, string>;

export interface Answer {
  target: { refId: string; legendFormat: string; format: string; instant: boolean };
  step: number; // seconds
  series: Array<{ labels: Labels; times: number[]; values: number[] }>;
}

standardTransformersRegistry.setInit(() =>
  [
    standardTransformers.joinByFieldTransformer,
    standardTransformers.organizeFieldsTransformer,
    standardTransformers.filterFieldsByNameTransformer,
  ].map((t) => ({ id: t.id, name: t.name, transformation: t, editor: () => null }) as any)
);

const STANDARD = ['unit', 'min', 'max', 'decimals', 'displayName', 'color', 'mappings', 'noValue', 'links'];

// Grafana registers these with its editors, which its packages do not export.
function registry(fieldConfig: any): FieldConfigOptionsRegistry {
  const custom = new Set<string>(Object.keys(fieldConfig.defaults.custom ?? {}));
  for (const override of fieldConfig.overrides ?? []) {
    for (const { id } of override.properties) {
      if (id.startsWith('custom.')) {
        custom.add(id.slice('custom.'.length));
      }
    }
  }
  const item = (id: string, path: string, process: any, isCustom = false) =>
    ({ id, path, name: id, process, isCustom, shouldApply: () => true, override: () => null, editor: () => null }) as unknown as FieldConfigPropertyItem;
  return new FieldConfigOptionsRegistry(() => [
    ...STANDARD.map((id) => item(id, id, identityOverrideProcessor)),
    item('thresholds', 'thresholds', thresholdsOverrideProcessor),
    ...[...custom].map((path) => item(`custom.${path}`, path, identityOverrideProcessor, true)),
  ]);
}

function seriesFrames(answer: Answer): DataFrame[] {
  const { target, step } = answer;
  return answer.series.map(({ labels, times, values }) =>
    toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: times, config: { interval: step * 1000 } },
        {
          name: 'Value',
          type: FieldType.number,
          values,
          labels,
          config: {
            displayNameFromDS:
              target.legendFormat === '__auto' ? undefined : renderLegendFormat(target.legendFormat, labels),
          },
        },
      ],
    })
  );
}

function tableFrame(answer: Answer, several: boolean): DataFrame[] {
  const { series, target } = answer;
  if (!series.length) {
    return [];
  }
  const names = [...new Set(series.flatMap((one) => Object.keys(one.labels)))].sort();
  return [
    toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: series.map((one) => one.times[0]) },
        ...names.map((name) => ({
          name,
          type: FieldType.string,
          config: { filterable: true },
          values: series.map((one) => one.labels[name] ?? ''),
        })),
        {
          name: several ? `Value #${target.refId}` : 'Value',
          type: FieldType.number,
          values: series.map((one) => one.values[0]),
        },
      ],
    }),
  ];
}

export async function framesOf(panel: any, answers: Answer[], theme: GrafanaTheme2): Promise<DataFrame[]> {
  let frames = answers.flatMap((answer) =>
    answer.target.format === 'table' ? tableFrame(answer, answers.length > 1) : seriesFrames(answer)
  );
  if (panel.transformations?.length && frames.length) {
    frames = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  }
  frames = frames.filter((frame) => frame.fields.length > 0);
  const overridden = applyFieldOverrides({
    data: frames,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry(panel.fieldConfig),
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  overridden.forEach((frame: DataFrame) => frame.fields.forEach((field: Field) => (field.state = { ...field.state })));
  cacheFieldDisplayNames(overridden);
  return overridden;
}
