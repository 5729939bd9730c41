package org.apache.beam.runners.flink.translation.functions;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;

import org.apache.beam.runners.fnexecution.provisioning.JobInfo;
import org.apache.beam.sdk.options.PipelineOptionsFactory;
import org.apache.beam.sdk.options.PortablePipelineOptions;
import org.apache.beam.sdk.util.construction.PipelineOptionsTranslation;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Struct;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Value;
import org.junit.Test;

/** How many workers a job has, and what each is told of it. */
public class FlinkExecutableStageContextFactoryTest {

  private static PortablePipelineOptions options(int workers) {
    PortablePipelineOptions options =
        PipelineOptionsFactory.create().as(PortablePipelineOptions.class);
    options.setSdkWorkerParallelism(workers);
    return options;
  }

  @Test
  public void theNumberOfWorkersIsAsBeamTakesIt() {
    int cores = Runtime.getRuntime().availableProcessors();
    PortablePipelineOptions none =
        PipelineOptionsFactory.create().as(PortablePipelineOptions.class);
    assertEquals(1, FlinkExecutableStageContextFactory.count(none));
    assertEquals(3, FlinkExecutableStageContextFactory.count(options(3)));
    assertEquals(
        Math.max(1, cores - 1), FlinkExecutableStageContextFactory.count(options(0)));
    assertThrows(
        IllegalArgumentException.class,
        () -> FlinkExecutableStageContextFactory.count(options(-1)));
  }

  @Test
  public void aWorkerIsToldAllOptionsThoughJavaDoesNotKnowThem() {
    Struct given =
        PipelineOptionsTranslation.toProto(options(2)).toBuilder()
            .putFields("beam:option:of_python:v1", Value.newBuilder().setStringValue("x").build())
            .build();
    JobInfo one =
        FlinkExecutableStageContextFactory.ofOneWorker(JobInfo.create("id", "name", "", given));
    Value told = one.pipelineOptions().getFieldsOrThrow("beam:option:of_python:v1");
    assertEquals("x", told.getStringValue());
    assertEquals(
        1,
        (int)
            PipelineOptionsTranslation.fromProto(one.pipelineOptions())
                .as(PortablePipelineOptions.class)
                .getSdkWorkerParallelism());
    assertEquals("id", one.jobId());
  }
}
