/*
 * A token goes round all ranks, each adding its number, for at least LAPS laps and SECONDS seconds;
 * the sum must be right at the end. Says how far it is every hundred laps, so that a test can break
 * something in between.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int rank, size, length;
	/* The sum so far, and whether this is the last lap. */
	long long token[2] = { 0, 0 }, expected = 0;
	char name[MPI_MAX_PROCESSOR_NAME];

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Get_processor_name(name, &length);
	printf("rank %d of %d on %s\n", rank, size, name);
	fflush(stdout);

	long laps = argc > 1 ? atol(argv[1]) : 100;
	double end = MPI_Wtime() + (argc > 2 ? atof(argv[2]) : 0);
	int next = (rank + 1) % size, previous = (rank + size - 1) % size;

	for (long lap = 1; !token[1]; lap++) {
		if (rank == 0) {
			token[1] = lap >= laps && MPI_Wtime() >= end;
			MPI_Send(token, 2, MPI_LONG_LONG, next, 7, MPI_COMM_WORLD);
			MPI_Recv(token, 2, MPI_LONG_LONG, previous, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			expected += (long long)size * (size - 1) / 2;
			if (lap % 100 == 0) {
				printf("lap %ld \n", lap);
				fflush(stdout);
			}
		} else {
			MPI_Recv(token, 2, MPI_LONG_LONG, previous, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			token[0] += rank;
			MPI_Send(token, 2, MPI_LONG_LONG, next, 7, MPI_COMM_WORLD);
		}
	}
	int wrong = rank == 0 && token[0] != expected;
	if (rank == 0)
		printf(wrong ? "ring is wrong\n" : "ring is right\n");
	MPI_Finalize();
	return wrong;
}
